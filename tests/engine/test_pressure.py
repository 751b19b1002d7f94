"""What drives a training towards sparsity: whose rates it changes, when it acts, and that a resume goes on with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hybridprune.batch import Batch
from hybridprune.engine.finetune import finetune
from hybridprune.engine.fit import Fit
from hybridprune.engine.pressure import Drive, parameter_groups
from hybridprune.engine.progress import Progress
from hybridprune.models.skipnet import GatedNetwork
from tests.engine.test_fit import EPOCHS, STEPS, Killed, assert_same_run, kill, make_fit, on_step, small_net

GAMMA = "backbone.bn.weight"


class Counting:
    """Grows with every step that it sees, and pushes one scale; remembers what it was told."""

    def __init__(self, net: GatedNetwork) -> None:
        self.net = net
        self.steps = 0
        self.done: list[float] = []
        self.added: list[Tensor] = []

    def add_gradients(self, done: float) -> None:
        gamma = self.net.get_parameter(GAMMA)
        assert gamma.grad is not None and bool(gamma.grad.any())
        self.steps += 1
        self.done.append(done)
        gamma.grad += 0.01 * self.steps

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]


def driven(path: Path, event: Any = None) -> tuple[Fit, Counting]:
    net = small_net()
    pressure = Counting(net)
    return make_fit(path, event, net, drive=Drive(pressure, {GAMMA: 10.0}, {GAMMA})), pressure


def test_it_acts_once_a_step_and_knows_how_far_the_training_is(tmp_path: Path) -> None:
    fit, pressure = driven(tmp_path / "run")
    fit(Progress(), None)
    assert pressure.done == pytest.approx([step / (EPOCHS * STEPS) for step in range(EPOCHS * STEPS)])
    alone = make_fit(tmp_path / "alone")
    alone(Progress(), None)
    assert not torch.equal(fit.net.get_parameter(GAMMA), alone.net.get_parameter(GAMMA))


def test_a_killed_training_goes_on_with_its_memory(tmp_path: Path) -> None:
    driven(tmp_path / "whole")[0](Progress(), None)
    with pytest.raises(Killed):
        driven(tmp_path / "cut", on_step((1, 2), kill))[0](Progress(), None)
    fit, pressure = driven(tmp_path / "cut")
    state = fit.run.load_state()
    assert state is not None
    fit(Progress(**state["progress"]), state)
    assert pressure.steps == EPOCHS * STEPS
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


def test_the_last_weights_are_kept_if_that_is_asked_for(tmp_path: Path) -> None:
    # A rate this high makes validation worse from epoch to epoch.
    for name, keep in (("last", True), ("best", False)):
        fit = make_fit(tmp_path / name, keep_last=keep, lr_factor=20.0)
        progress = fit(Progress(), None)
        saved = [(tmp_path / name / f"{which}.safetensors").read_bytes() for which in ("selected", "last")]
        assert (saved[0] == saved[1]) == keep == (progress.best_epoch == EPOCHS)


def test_rates_and_decay_are_those_that_the_drive_names() -> None:
    net = small_net()
    named = list(net.backbone.named_parameters(prefix="backbone"))
    groups = parameter_groups(named, Drive(Counting(net), {GAMMA: 10.0}, {GAMMA, "backbone.bn.bias"}), 2.0)
    assert sum(len(group["params"]) for group in groups) == len(named)
    assert [(group["factor"], group.get("weight_decay")) for group in groups] == [(2.0, None), (20.0, 0.0), (2.0, 0.0)]
    assert groups[1]["params"] == [net.get_parameter(GAMMA)]
    assert parameter_groups(named, None, 3.0) == [{"params": [p for _, p in named], "factor": 3.0}]


def test_fine_tuning_in_memory_is_driven_in_the_same_way() -> None:
    draw = torch.Generator().manual_seed(0)
    data = [Batch(torch.rand(6, 3, 8, 8, generator=draw), torch.arange(6) % 3) for _ in range(STEPS)]
    results, shares = [], []
    for drive in (False, True):
        net = small_net()
        pressure = Counting(net)
        model = net.backbone
        named = Drive(pressure, {"bn.weight": 10.0}, {"bn.weight"}) if drive else None
        finetune(model, data, epochs=1.5, lr=0.01, device=torch.device("cpu"), drive=named)
        results.append(model.bn.weight.detach().clone())
        shares.append(pressure.done)
    assert not torch.equal(*results) and shares[0] == []
    assert shares[1] == pytest.approx([step / 6 for step in range(6)])
