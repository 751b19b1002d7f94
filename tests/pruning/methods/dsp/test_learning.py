"""dsp's learning of groups in the training loop: the push, what its look-ahead leaves as it was, and resuming."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from hybridprune.config import SparsityOptions
from hybridprune.curvature import CROSS_ENTROPY
from hybridprune.data import Batch
from hybridprune.engine.descent import Descent
from hybridprune.engine.loop import Loop
from hybridprune.engine.objective import LikelihoodLoss
from hybridprune.engine.pressure import Drive, Step, parameter_groups
from hybridprune.errors import UserError
from hybridprune.pruning.branches.assignment import LOGITS, group_of
from hybridprune.pruning.budget.space import Cost, Space
from hybridprune.pruning.methods.dsp.method import prepare
from hybridprune.pruning.methods.dsp.regulariser import gradient, hard_shares, scale_of
from hybridprune.pruning.sparse_training.protocol import GroupTarget, Target
from hybridprune.pruning.sparse_training.scale_l1 import ScalePressure
from tests.networks_and_images import random_images

STEPS, LR, WEIGHT = 4, 0.1, 0.5
BATCHES = [Batch(random_images(5, seed=step), torch.arange(5) % 3) for step in range(STEPS)]
OPTIONS = SparsityOptions(sparse_epochs=1, dsp_groups=2, sparsity_weight=WEIGHT)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(6 * 16, 3))


def drive_of(net: nn.Module, options: SparsityOptions = OPTIONS) -> Drive:
    return prepare(Target(net, [], Space([], [], Cost(0, 0)), None, {}, 0, grouped=[GroupTarget("3", 4 * 36)]), options)


def loop_of(net: nn.Module, drive: Drive | None) -> Loop:
    named = parameter_groups(net.named_parameters(), drive)
    common: dict[str, Any] = {"lr": LR, "momentum": 0.9, "weight_decay": 1e-3, "steps": STEPS}
    descent = Descent(net, named, torch.device("cpu"), schedule=lambda share: 1 - share / 2, drive=drive, **common)
    return Loop(LikelihoodLoss(CROSS_ENTROPY), descent, STEPS, "do better")


def steps(loop: Loop, first: int, last: int) -> None:
    for _ in loop(loop.descent.net, BATCHES[first:last], first):
        pass


def test_a_step_is_the_tasks_and_then_the_push_of_hard_groups() -> None:
    plain, pressed = network(), network()
    without, drive = loop_of(plain, None), drive_of(pressed)
    with_push = loop_of(pressed, drive)
    pressed[3].get_buffer(LOGITS)[1, ::2] = 3.0
    steps(without, 0, 1)
    steps(with_push, 0, 1)
    weight = plain[3].get_parameter("weight").detach()
    shares = hard_shares(torch.tensor([1, 0, 1, 0, 1, 0]), 2)
    rate = WEIGHT * LR / STEPS * scale_of(4 * 36, 3, 2, 6)
    pushed = weight - rate * gradient(weight.flatten(2), shares).view(weight.shape)
    torch.testing.assert_close(pressed[3].get_parameter("weight").detach(), pushed)
    others = {k: v for k, v in pressed.state_dict().items() if not k.startswith("3.")}
    assert all(torch.equal(v, plain.state_dict()[k]) for k, v in others.items())  # BatchNorm's statistics as well
    moved = pressed[3].get_buffer(LOGITS) - torch.tensor([[0.0] * 6, [3.0, 0.0] * 3])
    assert bool((moved != 0).all()) and float(moved.abs().max()) == pytest.approx(1e-3, rel=1e-2)  # Adam's first step
    momenta = [[s["momentum_buffer"] for s in x.descent.optimizer.state.values()] for x in (without, with_push)]
    assert all(torch.equal(*pair) for pair in zip(*momenta, strict=True))


def test_a_trial_is_one_more_step_of_the_task() -> None:
    net, twin = network(), network()
    seen: list[dict[str, torch.Tensor]] = []

    def look(step: Step) -> None:
        with step.trial():
            seen.append({k: v.clone() for k, v in net.state_dict().items()})
        assert step.lr == LR and step.done == 1 / STEPS

    steps(loop_of(net, Drive(ScalePressure([], 0.0), after_step=look)), 0, 1)
    other = loop_of(twin, None)
    steps(other, 0, 1)
    before = copy.deepcopy(twin.state_dict())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    other.descent.schedule = lambda share: 1.0
    for _ in other(twin, BATCHES[:1], 1):
        pass
    for name, value in twin.state_dict().items():
        torch.testing.assert_close(seen[0][name], value)
        assert not value.is_floating_point() or not torch.equal(value, before[name])


def test_it_goes_on_as_if_it_had_not_stopped() -> None:
    whole = network()
    steps(loop_of(whole, drive_of(whole)), 0, STEPS)
    first, second = network(), network()
    begun = loop_of(first, drive_of(first))
    steps(begun, 0, 2)
    again = loop_of(second, drive_of(second))
    second.load_state_dict(first.state_dict())
    again.load_state_dict(copy.deepcopy(begun.state_dict()))
    steps(again, 2, STEPS)
    assert all(torch.equal(v, second.state_dict()[k]) for k, v in whole.state_dict().items())


def test_groups_are_learnt_in_epochs() -> None:
    options = SparsityOptions(sparse_epochs=0, dsp_groups=2)
    with pytest.raises(UserError, match="--sparse_epochs 0: --method dsp learns"):
        drive_of(network(), options)
    net = network()
    drive = drive_of(net, SparsityOptions(sparse_epochs=0, dsp_groups=1))
    assert drive.metrics() == {"groups_used": 1.0}
    assert group_of(net[3], 6).tolist() == [0] * 6
