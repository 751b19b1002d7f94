"""The loop by itself, without a run folder: it resumes, rests, averages and names the step that failed."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hybridprune.curvature import CROSS_ENTROPY
from hybridprune.data import Batch
from hybridprune.engine import compile_trial
from hybridprune.engine.compile_trial import Cost, Trial
from hybridprune.engine.compiler import Switch
from hybridprune.engine.descent import Descent
from hybridprune.engine.distill import Distillation
from hybridprune.engine.loop import Loop
from hybridprune.engine.objective import LikelihoodLoss, Pass
from hybridprune.engine.pressure import Drive, parameter_groups
from hybridprune.engine.step_means import StepMeans
from hybridprune.errors import RunFailed
from tests.networks_and_images import random_images

PER_PASS, STEPS = 3, 7
BATCHES = [Batch(random_images(5, seed=step), torch.arange(5) % 3) for step in range(STEPS)]


class Remembering:
    """Pushes a weight harder with every step."""

    def __init__(self, weight: Tensor) -> None:
        self.weight, self.steps = weight, 0

    def add_gradients(self, done: float) -> None:
        self.steps += 1
        assert self.weight.grad is not None
        self.weight.grad += 0.01 * self.steps * done

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))


def a_loop(net: nn.Module, **options: Any) -> Loop:
    """Distilled, driven and scheduled: all that a training may have."""
    torch.manual_seed(1)
    teacher = Distillation.of(copy.deepcopy(net), 0.5, 4.0)
    drive = Drive(Remembering(net.get_parameter("1.weight")), {"1.weight": 2.0}, {"1.weight"})
    descent = Descent(
        net,
        parameter_groups(net.named_parameters(), drive),
        torch.device("cpu"),
        lr=0.05,
        momentum=0.9,
        weight_decay=1e-3,
        schedule=lambda share: 1 - share,
        steps=STEPS,
        drive=drive,
    )
    return Loop(LikelihoodLoss(CROSS_ENTROPY, teacher), descent, PER_PASS, "do better", **options)


def steps_of(loop: Loop, batches: list[Batch] = BATCHES, start: int = 0) -> Iterator[int]:
    return loop(partial(nn.Module.__call__, loop.descent.net), batches, start)


def bits(net: nn.Module) -> list[bytes]:
    return [value.detach().numpy().tobytes() for value in net.state_dict().values()]


@pytest.mark.parametrize("at", [1, 3, 5])
def test_a_training_in_memory_goes_on_from_any_step(at: int) -> None:
    whole = a_loop(network())
    assert list(steps_of(whole)) == [1, 2, 3, 4, 5, 6, 7]
    first = a_loop(network())
    for done in steps_of(first):
        if done == at:
            break
    state = copy.deepcopy((first.descent.net.state_dict(), first.state_dict()))
    second = a_loop(network())
    second.descent.net.load_state_dict(state[0])
    second.load_state_dict(state[1])
    assert list(steps_of(second, BATCHES[at:], at)) == list(range(at + 1, STEPS + 1))
    assert bits(second.descent.net) == bits(whole.descent.net)
    assert second.read() == whole.read()


def test_means_are_of_the_steps_since_they_were_set_back() -> None:
    loop, read = a_loop(network()), []
    for done in steps_of(loop):
        read.append(loop.read()["loss"])
        if done == 5:
            loop.means = StepMeans()
    single = []
    other = a_loop(network())
    for _ in steps_of(other):
        single.append(other.read()["loss"])
        other.means = StepMeans()
    assert read[4] == pytest.approx(sum(single[:5]) / 5) and read[6] == pytest.approx(sum(single[5:]) / 2)


def test_a_loss_that_is_not_finite_is_named_by_its_step() -> None:
    loop = a_loop(network())
    poisoned = [*BATCHES[:4], Batch(BATCHES[4].images * math.nan, BATCHES[4].labels), *BATCHES[5:]]
    with pytest.raises(RunFailed, match=r"^the loss is not finite at epoch 2, step 2; do better$"):
        for _ in steps_of(loop, poisoned):
            loop.read()


class Known:
    def expected(self, shape: object) -> Cost | None:
        return None

    def keep(self, shape: object, cost: Cost) -> None:
        assert cost.share == 1


class Counting(LikelihoodLoss):
    """A loss that depends on how often it was asked for."""

    asked: int = 0

    def __call__(self, forward: Pass, batch: Batch, passes: float) -> tuple[Tensor, dict[str, Tensor]]:
        object.__setattr__(self, "asked", self.asked + 1)
        loss, metrics = super().__call__(forward, batch, passes)
        return loss * self.asked, metrics

    def state_dict(self) -> dict[str, Any]:
        return {"asked": self.asked}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        object.__setattr__(self, "asked", state["asked"])


def test_a_trial_of_compiling_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics of BatchNorm, masks of dropout, what the loss remembers and gradients are those without it."""
    monkeypatch.setattr(torch, "compile", lambda run: run)
    monkeypatch.setattr(compile_trial, "WARM_UP", 1)
    monkeypatch.setattr(compile_trial, "STEPS", 1)
    monkeypatch.setattr(compile_trial, "pays", lambda *_: True)
    found = []
    for tried in (False, True):
        net = network().append(nn.Dropout(0.5))
        loop = a_loop(net)
        loop.objective = objective = Counting(CROSS_ENTROPY)
        switch, clock, known = Switch(net), itertools.count().__next__, Known()
        if tried:
            loop.trial = Trial(switch, STEPS, known, clock, lambda: True)
        torch.manual_seed(2)
        assert len(list(loop(switch, BATCHES))) == STEPS and objective.asked == STEPS
        found.append((bits(net), loop.read()))
    assert found[0] == found[1] and loop.trial is not None and loop.trial.over


@pytest.mark.parametrize("rests", [True, False])
def test_norms_rest_in_a_batch_of_one_image_if_that_is_asked_for(rests: bool) -> None:
    loop = a_loop(network(), lone_at_rest=rests)
    alone = [Batch(random_images(1), torch.tensor([1]))]
    list(steps_of(loop, alone))
    norm = loop.descent.net.get_submodule("1")
    assert isinstance(norm, nn.BatchNorm2d) and norm.num_batches_tracked == (0 if rests else 1) and norm.training
