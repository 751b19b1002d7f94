"""The training loop: what it leaves behind, and that killing and resuming it changes nothing."""

from __future__ import annotations

import dataclasses
import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from hybridprune.config import OptimOptions
from hybridprune.data import Batch, LabelledImages, TrainBatches
from hybridprune.engine import compile_trial
from hybridprune.engine.distill import Distillation
from hybridprune.engine.evaluate import evaluate, evaluate_routes
from hybridprune.engine.fit import Fit
from hybridprune.engine.freeze import rotation_parameters
from hybridprune.engine.objective import Pass, Supervised
from hybridprune.engine.progress import Progress, Validation
from hybridprune.engine.schedule import factor
from hybridprune.errors import Interrupted, RunFailed, UserError
from hybridprune.measure.cost import count
from hybridprune.models.edits import FactorEdit
from hybridprune.models.routed import Routed
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.models.spec import NetworkSpec
from hybridprune.precision import fp32_precisions
from hybridprune.store.run_folder import RunFolder
from tests.devices.claimed import claimed_cuda
from tests.networks_and_images import batches_of

EPOCHS, STEPS = 3, 4
NAN = math.nan
CPU = torch.device("cpu")
OPTIM = OptimOptions(lr=0.05, momentum=0.9, scheduler_id="up-down", scheduler_params={"1": 0.1})
Event = Callable[[int, int, Batch], Batch]


class Killed(Exception):
    """Stands for a process that dies."""


class Batches(TrainBatches):
    """Six images a step; ``event`` is called with the epoch, the step and the batch that it may replace."""

    def __init__(self, event: Event | None = None, device: torch.device = CPU) -> None:
        draw = torch.Generator().manual_seed(0)
        images = torch.randint(256, (24, 3, 8, 8), generator=draw, dtype=torch.uint8)
        data = LabelledImages(images, torch.arange(24) % 3)
        options: dict[str, Any] = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "device": device, "channels_last": False}
        super().__init__(data, torch.arange(24), batch_size=6, crop=True, flip=True, seed=0, **options)
        self._event = event

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for step, batch in enumerate(super().epoch(epoch, start), start):
            yield batch if self._event is None else self._event(epoch % 100_000, step, batch)


def on_step(at: tuple[int, int], act: Callable[[Batch], Batch]) -> Event:
    """``act`` on the batch of this epoch and step (both from 0)."""
    return lambda epoch, step, batch: act(batch) if (epoch, step) == at else batch


def kill(batch: Batch) -> Batch:
    raise Killed


def ctrl_c(batch: Batch) -> Batch:
    signal.raise_signal(signal.SIGINT)
    return batch


def poison(batch: Batch) -> Batch:
    return dataclasses.replace(batch, images=batch.images * float("nan"))


def unreadable(batch: Batch) -> Batch:
    raise UserError("cat.png: cannot be decoded")


def validate(net: GatedNetwork) -> Validation:
    draw = torch.Generator().manual_seed(1)
    images = torch.randn(9, 3, 8, 8, generator=draw)
    found = evaluate(net, batches_of(images, torch.arange(9) % 3, 9), "masked")
    return Validation(-found.loss, {"loss": found.loss})


def small_net(edits: tuple[FactorEdit, ...] = (), seed: int = 0) -> GatedNetwork:
    torch.manual_seed(seed)
    return NetworkSpec("resnet", 8, 2, 3, edits=edits).build()


def make_fit(path: Path, event: Event | None = None, net: GatedNetwork | None = None, **changes: Any) -> Fit:
    """A fresh process: nothing is left of an earlier one but its files."""
    path.mkdir(exist_ok=True)
    net = small_net() if net is None else net
    options: dict[str, Any] = {
        "objective": Supervised.of(count(net, 8), 0.1, CPU), "batches": Batches(event), "validate": validate,
        "optim": OPTIM, "epochs": EPOCHS, "device": CPU, "log_interval": 100, **changes,
    }  # fmt: skip
    return Fit(run=RunFolder(path), net=net, **options)


def resume(path: Path, event: Event | None = None, **changes: Any) -> Progress:
    """Go on as a new process does: from the saved state, or from the beginning if there is none."""
    fit = make_fit(path, event, **changes)
    state = fit.run.load_state()
    return fit(Progress() if state is None else Progress(**state["progress"]), state)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


def assert_same_run(one: Path, other: Path) -> None:
    """Bit-identical weights, both best and last, and the same metrics but for the time."""
    for name in ("selected.safetensors", "last.safetensors"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert read_metrics(one) == read_metrics(other)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    path = tmp_path_factory.mktemp("whole")
    resume(path)
    return path


# --- what a training leaves behind ---


def test_one_line_an_epoch_and_one_before_the_first(whole: Path) -> None:
    records = read_metrics(whole)
    assert [(record["phase"], record["epoch"]) for record in records] == [(0, epoch) for epoch in range(EPOCHS + 1)]
    assert "train_loss" not in records[0] and records[0]["validation_loss"] > 0
    assert records[-1]["train_loss"] < records[1]["train_loss"]
    assert list((whole / "tb").iterdir())


def test_the_loop_is_sgd_with_nesterov_momentum_and_the_schedule(whole: Path, tmp_path: Path) -> None:
    net = make_fit(tmp_path).net.train()
    objective = Supervised.of(count(net, 8), 0.1, CPU)
    buffers = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    records = read_metrics(whole)
    for epoch in range(EPOCHS):
        losses = []
        for step, batch in enumerate(Batches().epoch(epoch)):
            loss, _ = objective(net, batch, epoch)
            losses.append(loss.item())
            gradients = torch.autograd.grad(loss, list(net.parameters()))
            lr = OPTIM.lr * factor("up-down", {"1": 0.1}, (epoch * STEPS + step) / (EPOCHS * STEPS))
            with torch.no_grad():
                for (name, p), gradient in zip(net.named_parameters(), gradients, strict=True):
                    decayed = gradient + OPTIM.weight_decay * p
                    buffers[name] = OPTIM.momentum * buffers[name] + decayed
                    p -= lr * (decayed + OPTIM.momentum * buffers[name])
        assert records[epoch + 1]["train_loss"] == pytest.approx(sum(losses) / STEPS, rel=1e-4)
    for name, value in load_file(whole / "last.safetensors").items():
        torch.testing.assert_close(value, net.state_dict()[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("scores", "best"),
    [([1, 3, 2, 3], 1), ([5, 1, 1, 1], 0), ([1, 2, 3, 4], 3), ([NAN, -5, NAN, -4], 3), ([NAN] * 4, 0)],
)
def test_the_first_best_weights_on_validation_are_kept(scores: list[float], best: int, tmp_path: Path) -> None:
    seen: list[Tensor] = []

    def scored(net: GatedNetwork) -> Validation:
        seen.append(net.backbone.conv.weight.detach().clone())
        return Validation(scores[len(seen) - 1], {})

    progress = resume(tmp_path, validate=scored)
    expected = scores[best] if math.isfinite(scores[best]) else -math.inf
    assert (progress.best_epoch, progress.best_score) == (best, expected)
    name = "backbone.conv.weight"
    assert torch.equal(load_file(tmp_path / "selected.safetensors")[name], seen[best])
    assert torch.equal(load_file(tmp_path / "last.safetensors")[name], seen[-1])


def test_equal_runs_are_bit_identical(whole: Path, tmp_path: Path) -> None:
    resume(tmp_path / "again")
    assert_same_run(whole, tmp_path / "again")


def test_a_trial_of_compiling_changes_nothing_and_is_made_again_after_a_resume(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(torch, "compile", lambda run: run)
    monkeypatch.setattr(compile_trial, "WARM_UP", 1)
    monkeypatch.setattr(compile_trial, "STEPS", 1)
    monkeypatch.setattr(compile_trial, "pays", lambda *_: True)
    with pytest.raises(Interrupted):
        resume(tmp_path / "auto", on_step((1, 0), ctrl_c), compile="auto")
    resume(tmp_path / "auto", compile="auto")
    assert_same_run(whole, tmp_path / "auto")
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("compile auto: ")]
    # After two steps each, the first time of all twelve, the second time of what was left.
    assert "10 steps of" in told[0] and f"{12 - 5 - 2} steps of" in told[2] and len(told) == 4
    assert len(list((tmp_path / "cache/hybridprune/compiling").iterdir())) == 1


@pytest.mark.parametrize("mode", ["off", "on"])
def test_what_learns_is_compiled_from_the_start_or_never(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[object] = []
    monkeypatch.setattr(torch, "compile", lambda run: compiled.append(run) or run)
    fit = make_fit(tmp_path, compile=mode, epochs=1)
    fit(Progress(), None)
    assert compiled[1:] == ([fit.net] if mode == "on" else []), "after the probe"


def test_train_mode_is_the_stages_choice(tmp_path: Path) -> None:
    modes: list[bool] = []

    def frozen(net: GatedNetwork) -> nn.Module:
        modes.append(net.training)
        return net.eval()

    before = make_fit(tmp_path).net.backbone.bn.state_dict()["running_mean"].clone()
    resume(tmp_path, train_mode=frozen)
    assert len(modes) == EPOCHS
    assert torch.equal(load_file(tmp_path / "last.safetensors")["backbone.bn.running_mean"], before)


def test_gates_learn_at_their_own_rate(tmp_path: Path) -> None:
    initial = {name: value.clone() for name, value in make_fit(tmp_path / "0").net.state_dict().items()}
    moved = {}
    for rate in (1.0, 10.0):
        plain = OptimOptions(lr=0.01, momentum=0.0, weight_decay=0.0)
        with pytest.raises(Interrupted):
            resume(tmp_path / str(rate), on_step((0, 0), ctrl_c), gate_lr_factor=rate, optim=plain)
        state = RunFolder(tmp_path / str(rate)).load_state()
        assert state is not None
        moved[rate] = {name: state["network"][name] - initial[name] for name in initial}
    for name in ("gate.cell.weight_ih", "gate.score.bias"):
        torch.testing.assert_close(moved[10.0][name], 10 * moved[1.0][name], rtol=1e-3, atol=1e-6)
        assert moved[1.0][name].abs().sum() > 0
    assert torch.equal(moved[10.0]["backbone.conv.weight"], moved[1.0]["backbone.conv.weight"])


def one_step(path: Path, **changes: Any) -> dict[str, Tensor]:
    """What a single step of plain gradient descent adds to the weights."""
    initial = {name: value.clone() for name, value in make_fit(path).net.state_dict().items()}
    plain = OptimOptions(lr=0.01, momentum=0.0, weight_decay=0.0)
    with pytest.raises(Interrupted):
        resume(path, on_step((0, 0), ctrl_c), optim=plain, **changes)
    state = RunFolder(path).load_state()
    assert state is not None
    return {name: state["network"][name] - value for name, value in initial.items()}


@pytest.mark.parametrize("share", [0.1, 3.0])
def test_the_gates_gradient_alone_is_clipped_to_its_norm(share: float, tmp_path: Path) -> None:
    free = one_step(tmp_path / "free")
    gates = [name for name in free if name.startswith("gate.")]
    norm = float(torch.stack([free[name].square().sum() for name in gates]).sum().sqrt()) / 0.01
    clipped = one_step(tmp_path / "clipped", gate_grad_norm=share * norm)
    for name in gates:
        torch.testing.assert_close(clipped[name], min(1.0, share) * free[name], rtol=1e-3, atol=1e-7)
    assert torch.equal(clipped["backbone.conv.weight"], free["backbone.conv.weight"]) and norm > 0


# --- what fine-tuning after pruning needs ---

EDITS = (FactorEdit("backbone.blocks.0.conv1", 2, 2), FactorEdit("backbone.blocks.1.conv2", None, 3))
ROTATIONS = {
    "backbone.blocks.0.conv1.rotate_in.weight",
    "backbone.blocks.0.conv1.rotate_out.weight",
    "backbone.blocks.1.conv2.rotate_out.weight",
}


def test_frozen_parameters_neither_learn_nor_decay(tmp_path: Path) -> None:
    requires: set[str] = set()

    def spy(epoch: int, step: int, batch: Batch) -> Batch:
        requires.update(name for name, p in net.named_parameters() if not p.requires_grad)
        return batch

    net = small_net(EDITS)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    fit = make_fit(tmp_path, spy, net, frozen=rotation_parameters(net))
    fit(Progress(), None)
    assert requires == ROTATIONS and all(p.requires_grad for p in net.parameters())
    assert {name for name, p in net.named_parameters() if torch.equal(p, before[name])} == ROTATIONS
    state = fit.run.load_state()
    assert state is not None
    trained = [len(group["params"]) for group in state["optimizer"]["param_groups"]]
    assert sum(trained) == len(state["optimizer"]["state"]) == len(before) - len(ROTATIONS)


def test_frozen_parameters_are_freed_when_the_training_fails(tmp_path: Path) -> None:
    net = small_net(EDITS)
    with pytest.raises(Killed):
        make_fit(tmp_path, on_step((1, 1), kill), net, frozen=ROTATIONS)(Progress(), None)
    assert all(p.requires_grad for p in net.parameters())


def kd() -> Distillation | None:
    return Distillation.of(small_net(seed=1), 0.5, 4.0)


@pytest.mark.parametrize("act", [kill, ctrl_c])
def test_a_frozen_distilled_slower_training_resumes(act: Callable[[Batch], Batch], tmp_path: Path) -> None:
    def start(path: Path, event: Event | None = None) -> None:
        net = small_net(EDITS)
        objective = Supervised.of(count(net, 8), 0.1, CPU, kd())
        resume(path, event, net=net, frozen=ROTATIONS, lr_factor=0.3, objective=objective)

    start(tmp_path / "whole")
    with pytest.raises((Killed, Interrupted)):
        start(tmp_path / "run", on_step((1, 2), act))
    start(tmp_path / "run")
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_the_teacher_is_logged_but_not_saved_or_trained(tmp_path: Path) -> None:
    net, distillation = small_net(), kd()
    assert distillation is not None
    before = {name: value.clone() for name, value in distillation.teacher.state_dict().items()}
    fit = make_fit(tmp_path, net=net, objective=Supervised.of(count(net, 8), 0.1, CPU, distillation))
    fit(Progress(), None)
    assert all(torch.equal(value, before[name]) for name, value in distillation.teacher.state_dict().items())
    assert not any(module.training for module in distillation.teacher.modules())
    records, state = read_metrics(tmp_path), fit.run.load_state()
    assert "train_distillation" not in records[0]
    assert 0 < records[-1]["train_distillation"] < records[1]["train_distillation"]
    assert state is not None and state["network"].keys() == net.state_dict().keys() and state["objective"] == {}
    assert len(state["optimizer"]["state"]) == len(list(net.parameters()))


def test_lr_factor_scales_the_learning_rate(whole: Path, tmp_path: Path) -> None:
    resume(tmp_path / "scaled", lr_factor=0.1)
    resume(tmp_path / "lower", optim=dataclasses.replace(OPTIM, lr=OPTIM.lr * 0.1))
    assert_same_run(tmp_path / "scaled", tmp_path / "lower")
    rates = [[record["lr"] for record in read_metrics(path)] for path in (whole, tmp_path / "scaled")]
    assert rates[1] == pytest.approx([0.1 * lr for lr in rates[0]])


def gateless() -> GatedNetwork:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
    return GatedNetwork(layers)


def test_a_network_without_gates_trains_and_resumes(tmp_path: Path) -> None:
    assert not list(gateless().gate.parameters())

    def start(path: Path, event: Event | None = None) -> None:
        net = gateless()
        objective = Supervised.of(count(net, 8), 0.1, CPU)
        resume(path, event, net=net, objective=objective, gate_grad_norm=1.0)

    start(tmp_path / "whole")
    with pytest.raises(Killed):
        start(tmp_path / "run", on_step((1, 2), kill))
    start(tmp_path / "run")
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    assert read_metrics(tmp_path / "whole")[-1]["train_rate"] == 1
    initial, last = gateless().state_dict(), load_file(tmp_path / "whole" / "last.safetensors")
    assert all(not torch.equal(last[name], initial[name]) for name in ("backbone.0.weight", "backbone.4.bias"))


# --- killed and resumed ---


@pytest.mark.parametrize("at", [(0, 0), (0, 2), (1, 0), (1, 3), (2, 3)])
def test_killed_at_a_step_and_resumed(at: tuple[int, int], whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    with pytest.raises(Killed):
        resume(path, on_step(at, kill))
    resume(path)
    assert_same_run(whole, path)


@pytest.mark.parametrize("at", [(0, 0), (0, 3), (1, 1), (2, 3)])
def test_interrupted_at_a_step_and_resumed(at: tuple[int, int], whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    with pytest.raises(Interrupted, match="--resume"):
        resume(path, on_step(at, ctrl_c))
    state = RunFolder(path).load_state()
    assert state is not None
    assert (state["progress"]["epoch"], state["progress"]["step"]) == (at[0], at[1] + 1)
    resume(path)
    assert_same_run(whole, path)


@pytest.mark.parametrize("epoch", range(EPOCHS + 1))
def test_interrupted_while_an_epoch_is_being_recorded(
    epoch: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, original = tmp_path / "run", RunFolder.append_metrics

    def interrupting(self: RunFolder, record: Any) -> None:
        if record["epoch"] == epoch:
            signal.raise_signal(signal.SIGINT)
        original(self, record)

    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="--resume"):
        patch.setattr(RunFolder, "append_metrics", interrupting)
        resume(path)
    resume(path)
    assert_same_run(whole, path)


EVERY_STEP = 1e-9
"""Minutes."""


@pytest.mark.parametrize("at", [(0, 0), (0, 1), (1, 0), (1, 3), (2, 3)])
def test_killed_after_a_save_within_an_epoch(at: tuple[int, int], whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    with pytest.raises(Killed):
        resume(path, on_step(at, kill), save_every=EVERY_STEP)
    state = RunFolder(path).load_state()
    assert state is not None
    assert (state["progress"]["epoch"], state["progress"]["step"]) == at
    resume(path)
    assert_same_run(whole, path)


def test_saving_within_epochs_changes_nothing(whole: Path, tmp_path: Path) -> None:
    resume(tmp_path / "run", save_every=EVERY_STEP)
    assert_same_run(whole, tmp_path / "run")


@pytest.mark.parametrize(("save_every", "saves"), [(0, 1 + EPOCHS), (1, 1 + EPOCHS + 2), (1000, 1 + EPOCHS)])
def test_a_long_epoch_saves_after_so_many_minutes(
    save_every: float, saves: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first two steps take a minute each."""
    saved, clock, original = list[tuple[int, int]](), [0.0], RunFolder.save_state
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def slow(epoch: int, step: int, batch: Batch) -> Batch:
        clock[0] += 60 * (epoch == 0 and step < 2)
        return batch

    def note(self: RunFolder, state: Any) -> None:
        saved.append((state["progress"]["epoch"], state["progress"]["step"]))
        original(self, state)

    monkeypatch.setattr(RunFolder, "save_state", note)
    resume(tmp_path / "run", slow, save_every=save_every)
    assert len(saved) == saves and saved[-1] == (EPOCHS, 0)
    seconds = [json.loads(line)["seconds"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert seconds == [0, 120, 120, 120]


def test_sigterm_is_answered_as_ctrl_c_is(whole: Path, tmp_path: Path) -> None:
    def sigterm(batch: Batch) -> Batch:
        signal.raise_signal(signal.SIGTERM)
        return batch

    with pytest.raises(Interrupted, match="--resume") as raised:
        resume(tmp_path / "run", on_step((1, 1), sigterm))
    assert raised.value.signum == signal.SIGTERM
    resume(tmp_path / "run")
    assert_same_run(whole, tmp_path / "run")


def test_scores_that_are_no_numbers_select_the_first_network(tmp_path: Path) -> None:
    resume(tmp_path / "run", validate=lambda net: Validation(float("nan"), {}))
    state = RunFolder(tmp_path / "run").load_state()
    assert state is not None and state["progress"]["best_epoch"] == 0
    initial = small_net().state_dict()
    selected = load_file(tmp_path / "run" / "selected.safetensors")
    assert all(torch.equal(selected[name], initial[name]) for name in selected)


def test_a_training_whose_selected_epoch_is_not_finite_fails_and_so_does_its_resumption(tmp_path: Path) -> None:
    def never(net: GatedNetwork) -> Validation:
        return Validation(0.5, {"loss": math.inf})

    for _ in range(2):
        with pytest.raises(RunFailed, match=r"validation loss is not finite at epoch 0, the selected one; start anew"):
            resume(tmp_path / "run", validate=never)
    assert len(read_metrics(tmp_path / "run")) == 1 + EPOCHS


def test_epochs_that_went_astray_are_told_at_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    losses = iter([1.0, math.nan, 0.5, 0.75])

    def sometimes(net: GatedNetwork) -> Validation:
        loss = next(losses)
        return Validation(-loss, {"loss": loss})

    assert resume(tmp_path / "run", validate=sometimes).best_epoch == 2
    told = "warning: the validation loss is not finite at 1 of 3 epochs, first at epoch 1; epoch 2 is selected"
    assert capsys.readouterr().err.splitlines()[-1] == told


def test_interrupted_at_every_step(whole: Path, tmp_path: Path) -> None:
    path, starts = tmp_path / "run", 0
    while True:
        starts += 1
        try:
            resume(path, lambda epoch, step, batch: ctrl_c(batch))
            break
        except Interrupted:
            continue
    assert starts == EPOCHS * STEPS + 1
    assert_same_run(whole, path)


@pytest.mark.parametrize("nth", range(4))
@pytest.mark.parametrize("method", ["append_metrics", "save_state"])
def test_killed_while_an_epoch_is_being_recorded(
    method: str, nth: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, calls = tmp_path / "run", 0
    original = getattr(RunFolder, method)

    def dying(self: RunFolder, record: Any) -> None:
        nonlocal calls
        if calls == nth:
            raise Killed
        calls += 1
        original(self, record)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(RunFolder, method, dying)
        resume(path)
    resume(path)
    assert_same_run(whole, path)


def test_killed_in_a_later_phase(tmp_path: Path) -> None:
    def two_phases(path: Path, event: Event | None = None) -> None:
        resume(path)
        fit = make_fit(path, event)
        state = fit.run.load_state()
        assert state is not None
        progress = Progress(**state["progress"])
        if progress.phase == 0:
            fit.net.load_state_dict(load_file(path / "last.safetensors"))
            fit(progress.next_phase(), None)
        else:
            fit(progress, state)

    two_phases(tmp_path / "whole")
    records = read_metrics(tmp_path / "whole")
    assert [(record["phase"], record["epoch"]) for record in records] == [(p, e) for p in (0, 1) for e in range(4)]
    assert records[4]["validation_loss"] == records[3]["validation_loss"]
    with pytest.raises(Killed):
        two_phases(tmp_path / "run", on_step((1, 2), kill))
    fit = make_fit(tmp_path / "run")
    state = fit.run.load_state()
    assert state is not None and state["progress"]["phase"] == 1
    fit(Progress(**state["progress"]), state)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_phases_shuffle_anew(tmp_path: Path) -> None:
    orders: list[list[int]] = []

    def record(epoch: int, step: int, batch: Batch) -> Batch:
        orders[-1] += batch.ids.tolist()
        return batch

    for phase in (0, 1):
        orders.append([])
        make_fit(tmp_path, record, epochs=1)(Progress(phase=phase), None)
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1]) == list(range(24))


def test_the_objective_is_told_the_passes_done_also_after_a_resume(tmp_path: Path) -> None:
    told: list[float] = []

    class Listening(Supervised):
        def __call__(self, forward: Pass, batch: Batch, passes: float) -> tuple[Tensor, dict[str, Tensor]]:
            told.append(passes)
            return super().__call__(forward, batch, passes)

    plain = Supervised.of(count(small_net(), 8), 0.1, CPU)
    listening = Listening(plain.block_shares, plain.rate_penalty)
    with pytest.raises(Killed):
        resume(tmp_path, on_step((1, 2), kill), objective=listening, epochs=2)
    resume(tmp_path, objective=listening, epochs=2)
    steps = [k / STEPS for k in range(2 * STEPS)]
    # Killed in the second epoch: it starts again at its beginning.
    assert told == pytest.approx(steps[: STEPS + 2] + steps[STEPS:])


def test_a_finished_training_is_not_repeated(whole: Path, tmp_path: Path) -> None:
    resume(tmp_path)
    resume(tmp_path, lambda epoch, step, batch: kill(batch))
    assert_same_run(whole, tmp_path)


# --- a loss that is not finite ---


@pytest.mark.parametrize("log_interval", [1, 100])
@pytest.mark.parametrize("at", [(0, 1), (1, 1), (2, 3)])
def test_nan_fails_the_run_and_spares_the_saved_state(
    at: tuple[int, int], log_interval: int, whole: Path, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    with pytest.raises(RunFailed, match=rf"not finite at epoch {at[0] + 1}, step .*--lr \(now 0\.05\)"):
        resume(path, on_step(at, poison), log_interval=log_interval)
    state = RunFolder(path).load_state()
    assert state is not None and (state["progress"]["epoch"], state["progress"]["step"]) == (at[0], 0)
    assert all(value.isfinite().all() for value in state["network"].values())
    assert len(read_metrics(path)) == at[0] + 1
    resume(path)
    assert_same_run(whole, path)


def test_ctrl_c_does_not_save_a_state_that_is_not_finite(tmp_path: Path) -> None:
    with pytest.raises(RunFailed):
        resume(tmp_path, on_step((1, 1), lambda batch: poison(ctrl_c(batch))))
    state = RunFolder(tmp_path).load_state()
    assert state is not None and state["progress"]["epoch"] == 1
    assert all(value.isfinite().all() for value in state["network"].values())


@pytest.mark.parametrize("at", [(0, 0), (1, 2)])
def test_an_image_that_cannot_be_read_costs_nothing(at: tuple[int, int], whole: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^cat\.png: cannot be decoded; the state is saved; .* --resume to go on$"):
        resume(tmp_path, on_step(at, unreadable))
    state = RunFolder(tmp_path).load_state()
    assert state is not None and (state["progress"]["epoch"], state["progress"]["step"]) == at
    resume(tmp_path)
    assert_same_run(whole, tmp_path)


def test_autocast_is_around_passes_and_not_around_the_objective(tmp_path: Path) -> None:
    net, seen = small_net(), []
    supervised = Supervised.of(count(net, 8), 0.1, CPU)

    class Watched:
        def __call__(self, forward: Any, batch: Batch, passes: float) -> tuple[Tensor, dict[str, Tensor]]:
            seen.append(torch.is_autocast_enabled("cpu"))
            return supervised(forward, batch, passes)

        def state_dict(self) -> dict[str, Any]:
            return {}

    layers: set[tuple[bool, torch.dtype]] = set()
    net.backbone.conv.register_forward_hook(lambda module, args, output: layers.add((module.training, output.dtype)))
    optim = dataclasses.replace(OPTIM, precision="bf16")
    fit = make_fit(tmp_path / "run", net=net, objective=Watched(), optim=optim, epochs=1)
    fit(Progress(), None)
    assert seen == [False] * STEPS
    # Training is in bf16, validation in fp32.
    assert layers == {(True, torch.bfloat16), (False, torch.float32)}


def test_a_training_leaves_the_callers_generators_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though dropout draws, from the same numbers in every run."""
    reseeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", reseeded.append)
    drawn = []
    for name in ("one", "two"):
        net = small_net()
        net.backbone.conv = nn.Sequential(net.backbone.conv, nn.Dropout2d(0.5))
        torch.manual_seed(len(name) + len(drawn))
        reseeded.clear()
        before = torch.get_rng_state()
        make_fit(tmp_path / name, net=net)(Progress(), None)
        assert torch.get_rng_state().equal(before) and reseeded == []
        drawn.append(net.get_parameter("backbone.conv.0.weight").detach().clone())
    assert torch.equal(*drawn)


@pytest.mark.parametrize(("asked", "inside"), [(False, "ieee"), (True, "tf32")])
def test_tf32_is_for_training_on_gpus_and_if_asked_for(asked: bool, inside: str, tmp_path: Path) -> None:
    def seen(device: torch.device) -> tuple[set[str], set[str]]:
        net, training, validating = small_net().to(device), set(), set()
        supervised = Supervised.of(count(net, 8), 0.1, device)

        class Watched(Supervised):
            def __call__(self, forward: Pass, batch: Batch, passes: float) -> tuple[Tensor, dict[str, Tensor]]:
                training.update(fp32_precisions().values())
                return supervised(forward, batch, passes)

        def watched(net: GatedNetwork) -> Validation:
            def route(batch: Batch, start: int) -> Routed:
                validating.update(fp32_precisions().values())
                return net(batch.images)

            evaluate_routes(route, [Batch(torch.zeros(2, 3, 8, 8, device=device), torch.arange(2), torch.arange(2))])
            return Validation(0.0, {})

        optim = dataclasses.replace(OPTIM, tf32=asked)
        fit = make_fit(
            tmp_path / device.type, net=net, objective=Watched(torch.zeros(2), 0.0), validate=watched, optim=optim,
            epochs=1, device=device, batches=Batches(device=device),
        )  # fmt: skip
        before = fp32_precisions()
        fit(Progress(), None)
        assert fp32_precisions() == before
        return training, validating

    assert seen(CPU) == ({"ieee"}, {"ieee"})
    with claimed_cuda() as device:
        assert seen(device) == ({inside}, {"ieee"})
