"""Averaged weights: their arithmetic, which of both are selected, and that killing a training changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hybridprune.data import Batch
from hybridprune.engine.progress import Progress, Validation
from hybridprune.engine.weight_average import WeightAverage
from hybridprune.errors import Interrupted, RunFailed
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.store.run_folder import RunFolder
from tests.engine.test_fit import (
    EPOCHS,
    STEPS,
    Killed,
    assert_same_run,
    ctrl_c,
    kill,
    make_fit,
    on_step,
    read_metrics,
    resume,
    small_net,
)

DECAY = 0.7
NAME = "backbone.conv.weight"


def disturb(net: nn.Module, seed: int) -> None:
    """Change everything in place, as a step does."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in net.state_dict().values():
            if value.is_floating_point():
                value.add_(torch.randn(value.shape, generator=draw))
            else:
                value.add_(1)


def test_averages_are_those_of_the_definition_and_of_torch() -> None:
    net = small_net()
    average = WeightAverage(net, DECAY)
    torchs = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(DECAY), use_buffers=True)
    torchs.update_parameters(net)  # its first one copies
    expected = {name: value.double() for name, value in net.state_dict().items()}
    for step in range(5):
        disturb(net, step)
        average.update()
        torchs.update_parameters(net)
        for name, value in net.state_dict().items():
            moved = DECAY * expected[name] + (1 - DECAY) * value.double()
            expected[name] = moved if value.is_floating_point() else value.double()
    for name, value in average.net.state_dict().items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)
        if value.is_floating_point():
            assert torch.equal(value, torchs.module.state_dict()[name]), name


def test_the_network_is_not_changed_by_its_average() -> None:
    net = small_net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    average = WeightAverage(net, DECAY)
    disturb(average.net, 0)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_training_averages_what_each_step_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, steps = small_net().state_dict()[NAME].double(), []
    own = WeightAverage.update

    def followed(self: WeightAverage[GatedNetwork]) -> None:
        nonlocal expected
        own(self)
        value = fit_net[0].state_dict()[NAME].double()
        steps.append(value)
        expected = DECAY * expected + (1 - DECAY) * value

    fit_net = [small_net()]
    monkeypatch.setattr(WeightAverage, "update", followed)
    resume(tmp_path, net=fit_net[0], ema_decay=DECAY)
    assert len(steps) == EPOCHS * STEPS and not any(map(torch.equal, steps, steps[1:]))
    state = RunFolder(tmp_path).load_state()
    assert state is not None
    torch.testing.assert_close(state["average"][NAME].double(), expected, rtol=1e-5, atol=1e-6)


SCORES = pytest.mark.parametrize(
    ("scores", "best", "averaged"),
    # Before the training, then of the weights and of their average after each epoch.
    [([0, 1, 2, 3, 1, 0, 0], 2, False), ([0, 1, 2, 2, 1, 0, 5], 3, True), ([9, *[1] * 6], 0, False)],
)


@SCORES
def test_the_better_ones_on_validation_are_selected(
    scores: list[float], best: int, averaged: bool, tmp_path: Path
) -> None:
    seen: list[Tensor] = []

    def scored(net: GatedNetwork) -> Validation:
        seen.append(net.backbone.conv.weight.detach().clone())
        return Validation(scores[len(seen) - 1], {"loss": float(len(seen))})

    progress = resume(tmp_path, validate=scored, ema_decay=DECAY)
    assert (progress.best_epoch, progress.best_averaged, progress.best_score) == (best, averaged, max(scores))
    assert torch.equal(load_file(tmp_path / "selected.safetensors")[NAME], seen[scores.index(max(scores))])
    assert torch.equal(load_file(tmp_path / "last.safetensors")[NAME], seen[-2])
    lines = read_metrics(tmp_path)
    assert "validation_averaged_loss" not in lines[0]
    assert [(line["validation_loss"], line["validation_averaged_loss"]) for line in lines[1:]] == [
        (2, 3), (4, 5), (6, 7)
    ]  # fmt: skip


def test_the_last_ones_are_the_averaged_ones(tmp_path: Path) -> None:
    progress = resume(tmp_path, ema_decay=DECAY, keep_last=True)
    assert (progress.best_epoch, progress.best_averaged) == (EPOCHS, True)
    state = RunFolder(tmp_path).load_state()
    assert state is not None
    assert torch.equal(load_file(tmp_path / "selected.safetensors")[NAME], state["average"][NAME])


@pytest.mark.parametrize(("broken", "fails"), [("", False), ("averaged", True)])
def test_the_loss_of_what_was_selected_has_to_be_finite(broken: str, fails: bool, tmp_path: Path) -> None:
    calls = [0]

    def validate(net: GatedNetwork) -> Validation:
        calls[0] += 1
        averaged = calls[0] > 1 and calls[0] % 2 == 1
        bad = averaged == (broken == "averaged") and calls[0] > 1 + 2 * (EPOCHS - 1)
        return Validation(calls[0] if averaged else 0, {"loss": float("inf") if bad else 1.0})

    def training() -> Progress:
        return resume(tmp_path, validate=validate, ema_decay=DECAY)

    if fails:
        with pytest.raises(RunFailed, match="not finite at epoch 3, the selected one"):
            training()
    else:
        assert training().best_averaged


@pytest.mark.parametrize(("act", "at"), [(kill, (1, 2)), (ctrl_c, (0, 0)), (ctrl_c, (1, 2))])
def test_killed_at_a_step_and_resumed(act: Callable[[Batch], Batch], at: tuple[int, int], tmp_path: Path) -> None:
    resume(tmp_path / "whole", ema_decay=DECAY)
    with pytest.raises((Killed, Interrupted)):
        resume(tmp_path / "run", on_step(at, act), ema_decay=DECAY)
    resume(tmp_path / "run", ema_decay=DECAY)
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    states = [RunFolder(tmp_path / name).load_state() for name in ("whole", "run")]
    assert states[0] is not None and states[1] is not None
    assert all(torch.equal(value, states[1]["average"][name]) for name, value in states[0]["average"].items())


def test_a_state_from_before_the_first_step_starts_the_average(tmp_path: Path) -> None:
    """As that of a network that was just cut, which has been saved without it."""
    resume(tmp_path / "whole", ema_decay=DECAY)
    make_fit(tmp_path / "run", ema_decay=DECAY).save(Progress())
    resume(tmp_path / "run", ema_decay=DECAY)
    assert_same_run(tmp_path / "whole", tmp_path / "run")
