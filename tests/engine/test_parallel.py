"""Two processes against one: averages, evaluation, and the training loop with BatchNorm per process."""

from __future__ import annotations

import dataclasses
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from hybridprune.config import GatingOptions, OptimOptions
from hybridprune.data import Batch, EvalBatches, LabelledImages, Share, TrainBatches
from hybridprune.engine.batchnorm import synchronised
from hybridprune.engine.distill import Distillation
from hybridprune.engine.draws import Draws
from hybridprune.engine.evaluate import evaluate
from hybridprune.engine.fit import Fit
from hybridprune.engine.objective import Supervised
from hybridprune.engine.parallel import average, average_gradients, batch_mean, gather, share_weights
from hybridprune.engine.progress import Progress, Validation
from hybridprune.measure.cost import count
from hybridprune.models.shakedrop import ShakeDrop
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.models.spec import NetworkSpec
from hybridprune.processes import count as processes
from hybridprune.processes import is_first, rank, total
from hybridprune.store.run_folder import RunFolder
from tests.networks_and_images import random_decisions, random_net
from tests.process_groups import on_shards, together

CPU = torch.device("cpu")
IMAGES = 31
PLAIN: dict[str, Any] = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "device": CPU, "channels_last": False}


def data() -> LabelledImages:
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(256, (IMAGES, 3, 8, 8), generator=draw, dtype=torch.uint8)
    return LabelledImages(images, torch.arange(IMAGES) % 3)


def both(folder: Path, command: Any) -> list[Any]:
    """What ``command`` returns in each of two processes, which must not fail."""
    ended = together(folder, command)
    assert [each[0] for each in ended] == [0, 0], ended[0][3] + ended[1][3]
    return [each[1] for each in ended]


def test_averages_sums_and_what_each_has(tmp_path: Path) -> None:
    def work() -> object:
        own = rank()
        matrices = [torch.tensor([[1.0, 2.0], [3.0, 4.0]]).T * (own + 1), torch.tensor(float(own))]
        average(matrices)
        sums = torch.tensor([own, 10])
        total([sums])
        rows = gather(torch.full((own + 1, 2), own - 0.5), own, 3)
        assert gather(torch.empty(own + 1, 0), own, 3).shape == (3, 0)
        net = random_net(8, seed=own)
        share_weights(net)
        net.gate.requires_grad_(own >= 0)
        unused, used = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
        frozen = nn.Parameter(torch.ones(1), requires_grad=False)
        used.grad = torch.full((3,), 4.0 * own)
        if own:
            unused.grad = torch.ones(2)
        nowhere = nn.Parameter(torch.ones(4))
        average_gradients([unused, frozen, nowhere, used])
        average_gradients([frozen])
        assert nowhere.grad is None, "an optimiser would decay what nothing has used"
        return [*matrices, sums, rows, unused.grad, used.grad], frozen.grad, net.state_dict()

    expected = [
        torch.tensor([[1.5, 4.5], [3.0, 6.0]]), torch.tensor(0.5), torch.tensor([1, 20]),
        torch.tensor([[-0.5, -0.5], [0.5, 0.5], [0.5, 0.5]]), torch.full((2,), 0.5), torch.full((3,), 2.0),
    ]  # fmt: skip
    weights = random_net(8, seed=0).state_dict()
    for found, frozen, shared in both(tmp_path, work):
        torch.testing.assert_close(found, expected)
        assert frozen is None
        assert all(torch.equal(shared[name], value) for name, value in weights.items())


def test_the_mean_of_a_batch_has_the_gradient_of_one_process(tmp_path: Path) -> None:
    images = torch.tensor([1.0, -2.0, 4.0, 8.0, 0.5])

    def loss(mean: Tensor) -> Tensor:
        return (mean - 3).square() + mean.exp()

    def work() -> object:
        share = Share.of(5, rank(), 2)
        weight = nn.Parameter(torch.tensor(0.7))
        whole = batch_mean((weight * images[share.start : share.stop]).mean(), share.weight)
        (loss(whole) * share.weight).backward()
        average_gradients([weight])
        return whole.detach(), weight.grad

    weight = nn.Parameter(torch.tensor(0.7))
    whole = (weight * images).mean()
    loss(whole).backward()
    first, second = both(tmp_path, work)
    torch.testing.assert_close(first, (whole.detach(), weight.grad))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


def test_evaluation_is_shared_and_all_get_the_whole(tmp_path: Path) -> None:
    net, forced = random_net(8, classes=3), random_decisions(IMAGES, 2)

    def evaluations() -> list[tuple[Tensor, ...]]:
        batches = EvalBatches(data(), None, batch_size=4, rank=rank(), processes=processes(), **PLAIN)
        assert batches.num_images == IMAGES and len(batches) == (8 if processes() == 1 else 4)
        found = [evaluate(net, batches, "executed"), evaluate(net, batches, "masked", forced)]
        return [dataclasses.astuple(each) for each in found]

    expected = evaluations()
    for found in both(tmp_path, evaluations):
        torch.testing.assert_close(found, expected)


class Sharded(Supervised):
    """The objective of the oracle."""

    def __call__(self, forward: Any, batch: Batch, passes: float) -> tuple[Tensor, dict[str, Tensor]]:
        return super().__call__(cast(nn.Module, on_shards(forward)), batch, passes)


class Batches(TrainBatches):
    """Seven images a step: three and four for two processes. Ctrl-C reaches one process in the given step."""

    def __init__(self, ctrl_c: int | None = None) -> None:
        self._ctrl_c = ctrl_c
        super().__init__(
            data(), torch.arange(IMAGES), batch_size=7, crop=True, flip=True, seed=0, **PLAIN,
            rank=rank(), processes=processes(),
        )  # fmt: skip

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for step, batch in enumerate(super().epoch(epoch, start), start):
            if (epoch, step, rank()) == (1, self._ctrl_c, 1):
                signal.raise_signal(signal.SIGINT)
            yield batch


def fit_of(path: Path, kind: type[Supervised], frozen_norms: bool = False, ctrl_c: int | None = None) -> Fit:
    """A training with all that is random, and a distillation."""
    net, teacher = small_net(0), small_net(1)
    gating = GatingOptions(gate_noise=1.0)
    draws = Draws(IMAGES, net.num_gates, 0, "noise")
    supervised = Supervised.of(count(net, 8), 0.3, CPU, Distillation.of(teacher, 0.3, 2.0), gating, draws)
    path.mkdir(exist_ok=True)

    def validate(candidate: GatedNetwork) -> Validation:
        batches = EvalBatches(data(), None, batch_size=9, rank=rank(), processes=processes(), **PLAIN)
        found = evaluate(candidate, batches, "masked")
        return Validation(-found.loss, {"loss": found.loss})

    return Fit(
        run=RunFolder(path, writes=is_first()), net=net, objective=kind(**vars(supervised)), batches=Batches(ctrl_c),
        validate=validate, optim=OptimOptions(lr=0.05, scheduler_id="up-down", scheduler_params={"1": 0.1}), epochs=2,
        device=CPU, log_interval=3, gate_grad_norm=0.1, ema_decay=0.7,
        train_mode=nn.Module.eval if frozen_norms else nn.Module.train,
    )  # fmt: skip


def small_net(seed: int) -> GatedNetwork:
    torch.manual_seed(seed)
    return NetworkSpec("resnet", 8, 2, 3).build()


def trained(path: Path, *options: Any, **more: Any) -> dict[str, Tensor]:
    fit = fit_of(path, *options, **more)
    state = fit.run.load_state()
    fit(Progress() if state is None else Progress(**state["progress"]), state)
    return fit.net.state_dict()


def records(path: Path) -> list[dict[str, float]]:
    lines = map(json.loads, (path / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def assert_close_runs(one: Path, other: Path) -> None:
    for name in ("selected.safetensors", "last.safetensors"):
        torch.testing.assert_close(load_file(one / name), load_file(other / name), rtol=1e-4, atol=1e-5)
    states = [RunFolder(path).load_state() for path in (one, other)]
    assert states[0] is not None and states[1] is not None
    torch.testing.assert_close(states[0]["average"], states[1]["average"], rtol=1e-4, atol=1e-5)
    assert len(records(one)) == len(records(other)) == 3
    for here, there in zip(records(one), records(other), strict=True):
        assert here == pytest.approx(there, rel=1e-4, abs=1e-5)


def test_two_processes_train_as_one_that_runs_their_shares(tmp_path: Path) -> None:
    trained(tmp_path / "one", Sharded)
    first, second = both(tmp_path, lambda: trained(tmp_path / "two", Supervised))
    assert_close_runs(tmp_path / "two", tmp_path / "one")
    assert all(torch.equal(second[name], value) for name, value in first.items())
    # The oracle tells BatchNorm per share from BatchNorm of the whole batch.
    trained(tmp_path / "whole", Supervised)
    with pytest.raises(AssertionError):
        assert_close_runs(tmp_path / "whole", tmp_path / "one")


@pytest.mark.full
def test_without_batch_statistics_two_processes_are_one(tmp_path: Path) -> None:
    trained(tmp_path / "one", Supervised, True)
    both(tmp_path, lambda: trained(tmp_path / "two", Supervised, True))
    assert_close_runs(tmp_path / "two", tmp_path / "one")


@pytest.mark.full
@pytest.mark.parametrize("frozen_norms", [True, pytest.param(False, marks=pytest.mark.full)])
def test_one_process_is_interrupted_and_another_number_goes_on(frozen_norms: bool, tmp_path: Path) -> None:
    both(tmp_path, lambda: trained(tmp_path / "whole", Supervised, frozen_norms))
    ended = together(tmp_path, lambda: trained(tmp_path / "cut", Supervised, frozen_norms, ctrl_c=2))
    assert [each[0] for each in ended] == [130, 130]
    messages = [line for each in ended for line in each[3].splitlines() if "interrupted" in line]
    assert len(messages) == 1 and "--resume" in messages[0]
    saved = RunFolder(tmp_path / "cut").load_state()
    assert saved is not None and (saved["progress"]["epoch"], saved["progress"]["step"]) == (1, 3)
    if frozen_norms:
        trained(tmp_path / "cut", Supervised, True)
    else:
        trained(tmp_path / "cut", Sharded)
    assert_close_runs(tmp_path / "cut", tmp_path / "whole")


def test_shakedrop_and_dropout_in_shares(tmp_path: Path) -> None:
    """ShakeDrop draws what one process would; dropout draws other masks in each process, the same after a resume."""

    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shake, self.dropout, self.scale = ShakeDrop(0.5), nn.Dropout(0.5), nn.Parameter(torch.ones(1))

        def forward(self, images: Tensor) -> Tensor:
            shaken = self.shake(torch.ones_like(images))[:, 0, 0, :3]
            seen.append((shaken, self.dropout(torch.ones(4))))
            return shaken * self.scale

    seen: list[tuple[Tensor, Tensor]] = []

    def steps(name: str, start: int) -> list[tuple[Tensor, Tensor]]:
        seen.clear()
        torch.manual_seed(0)
        net = GatedNetwork(Noisy())
        fit = dataclasses.replace(
            fit_of(tmp_path / name, Supervised), net=net, objective=Supervised.of(count(net, 8), 0, CPU),
            validate=lambda _: Validation(0, {}), epochs=1,
        )  # fmt: skip
        seen.clear()
        net.backbone.shake._calls = start
        fit(Progress(step=start), None)
        return list(seen)

    alone = steps("one", 0)
    first, second = both(tmp_path, lambda: steps("two", 0))
    assert len(alone) == len(first) == len(second) == 4
    for (whole, _), (left, _), (right, _) in zip(alone, first, second, strict=True):
        assert torch.equal(whole, torch.cat([left, right]))
        assert len(whole.unique()) >= 3
    assert not torch.equal(torch.stack([m for _, m in first]), torch.stack([m for _, m in second]))
    again = both(tmp_path, lambda: steps("again", 2))[1]
    torch.testing.assert_close(again, second[2:], rtol=0, atol=0)
    # Nor does one process need the state of a generator, of which every device has its own.
    torch.testing.assert_close(steps("one again", 2), alone[2:], rtol=0, atol=0)
    assert len({tuple(masks.tolist()) for _, masks in alone}) > 1


def test_synchronised_norms_are_the_same_tensors_and_go_back() -> None:
    net = random_net(8).train()
    before = {name: module for name, module in net.named_modules() if isinstance(module, nn.BatchNorm2d)}
    state = {name: value.data_ptr() for name, value in net.state_dict().items()}
    with synchronised(net):
        inside = dict(net.named_modules())
        assert all(type(inside[name]) is nn.SyncBatchNorm and inside[name].training for name in before)
        assert {name: value.data_ptr() for name, value in net.state_dict().items()} == state
        net.eval()
    assert {n: m for n, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)} == before
    assert not any(module.training for module in before.values())
