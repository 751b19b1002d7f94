"""Thresholds: a budget is met where some threshold meets it, and a threshold is a shift of the gates."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hybridprune.data import Batch
from hybridprune.engine.evaluate import evaluate
from hybridprune.engine.threshold import STEPS, operating_point, threshold_for
from hybridprune.measure.cost import NetworkCost, count
from hybridprune.models.gates import GATES
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.models.spec import NetworkSpec
from tests.networks_and_images import batches_of, random_images, random_net, randomised

NET = random_net(14)
COST = count(NET, 8)
BATCHES = batches_of(random_images(40), torch.arange(40) % 5, 16)
NO_GATE, EVERY_GATE = [0.0] * 5, [1.0] * 5


class Passes(list[Batch]):
    """Batches that count how often they were gone through."""

    done = 0

    def __iter__(self) -> Iterator[Batch]:
        self.done += 1
        return super().__iter__()


def passes(images: int) -> Passes:
    return Passes(batches_of(random_images(images), torch.arange(images) % 5, 100))


def moved(net: GatedNetwork, scale: float, by: float) -> GatedNetwork:
    """A copy whose gates' logits are scaled, and then shifted."""
    net = copy.deepcopy(net)
    with torch.no_grad():
        for layer in net.gate.scores():
            layer.weight.mul_(scale)
            layer.bias.mul_(scale)
    net.gate.shift(by)
    return net


def between(cost: NetworkCost, share: float) -> float:
    """MACs between those of skipping everything (0) and of executing everything (1)."""
    low, high = (cost.expected_macs([rate] * len(cost.block_macs)) for rate in (0.0, 1.0))
    return low + share * (high - low)


@functools.cache
def grid() -> list[float]:
    """The MACs at 121 thresholds."""
    return [operating_point(NET, BATCHES, COST, float(threshold)).macs for threshold in torch.linspace(-12, 12, 121)]


@pytest.mark.parametrize("wanted", [0.6, 0.75, 0.9])
def test_the_budget_is_met_as_nearly_as_any_threshold_on_a_grid_meets_it(wanted: float) -> None:
    target = between(COST, wanted)
    point = threshold_for(NET, BATCHES, COST, target, 0.01)
    nearest = min(abs(macs / target - 1) for macs in grid())
    assert abs(point.macs / target - 1) <= max(0.01, nearest + 0.01)
    shifted = moved(NET, 1, -point.threshold)
    assert torch.equal(evaluate(shifted, BATCHES, "executed").decisions, point.evaluation.decisions)
    assert point.macs == COST.expected_macs(point.evaluation.block_rates)


@pytest.mark.parametrize("by", [-60.0, 0.0, 60.0])
@pytest.mark.parametrize("scale", [1.0, 1e-3])
@pytest.mark.parametrize("gate", GATES)
def test_budgets_are_met_in_few_passes_wherever_the_logits_lie(gate: str, scale: float, by: float) -> None:
    torch.manual_seed(0)
    net = moved(randomised(NetworkSpec("resnet", 14, 4, 5, gate=gate).build()), scale, by)
    cost = count(net, 8)
    for share in (0, 0.3, 0.55, 0.8):
        target, batches = between(cost, share), passes(200)
        point = threshold_for(net, batches, cost, target, 0.01)
        assert abs(point.macs / target - 1) <= 0.01, share
        assert batches.done <= 5, share
        # Folded into the gates it is the same policy, but for logits that fp32 cannot tell apart so far from 0.
        folded = evaluate(moved(net, 1, -point.threshold), batches, "executed")
        assert (folded.decisions != point.evaluation.decisions).double().mean() <= (0.01 if by and scale < 1 else 0)


@pytest.mark.parametrize(("seed", "share"), [(0, 0.85), (11, 0.6)])
def test_where_features_change_much_the_bracket_is_halved(seed: int, share: float) -> None:
    """Policies for which the logits of the last pass alone propose the same few thresholds again and again."""
    torch.manual_seed(seed)
    net = randomised(NetworkSpec("resnet", 20, 4, 5).build())
    cost = count(net, 8)
    target, batches = between(cost, share), passes(200)
    assert abs(threshold_for(net, batches, cost, target, 0.004).macs / target - 1) <= 0.004
    assert batches.done <= 10 < STEPS


@pytest.mark.parametrize(("seed", "share"), [(0, 0.85), (8, 0.6), (52, 0.85)])
def test_the_search_ends_when_no_threshold_is_left_to_try(seed: int, share: float) -> None:
    net = random_net(20, 2, seed=seed)
    cost = count(net, 8)
    target, batches = between(cost, share), Passes(batches_of(random_images(60), torch.arange(60) % 5, 60))
    point = threshold_for(net, batches, cost, target, 0.0)
    assert 0 < abs(point.macs / target - 1) < 0.002 and batches.done < STEPS


@pytest.mark.parametrize("share", [0.15, 0.35, 0.55, 0.75, 0.95])
def test_thresholds_lie_midway_between_two_logits(share: float) -> None:
    point = threshold_for(NET, BATCHES, COST, between(COST, share), 0.1)  # features are still changing
    low, high = point.neighbours
    logits = point.evaluation.gate_logits
    assert low == logits[logits <= point.threshold].max() and high == logits[logits > point.threshold].min()
    assert point.threshold == pytest.approx((low + high) / 2, abs=1e-6) and low < point.threshold < high
    for other in (low, low + 0.99 * (high - low)):  # and between them nothing changes
        assert torch.equal(operating_point(NET, BATCHES, COST, other).evaluation.gate_logits, logits)


def test_the_extremes_execute_and_skip_everything() -> None:
    everything, nothing = (operating_point(NET, BATCHES, COST, threshold) for threshold in (-math.inf, math.inf))
    assert everything.macs == COST.expected_macs(EVERY_GATE) and nothing.macs == COST.expected_macs(NO_GATE)
    assert everything.neighbours[0] == -math.inf and nothing.neighbours[1] == math.inf
    expected = evaluate(NET, BATCHES, "always_on").cross_entropy
    torch.testing.assert_close(everything.evaluation.cross_entropy, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("factor", "rates"), [(0.5, NO_GATE), (1.0, NO_GATE), (1.0, EVERY_GATE), (2.0, EVERY_GATE)])
def test_a_budget_at_or_beyond_an_extreme_gives_it_at_a_finite_threshold(factor: float, rates: list[float]) -> None:
    batches = passes(40)
    point = threshold_for(NET, batches, COST, factor * COST.expected_macs(rates), 0.001)
    assert point.macs == COST.expected_macs(rates) and batches.done <= 4
    folded = moved(NET, 1, -point.threshold)
    assert all(torch.isfinite(layer.bias).all() for layer in folded.gate.scores())
    found = evaluate(folded, BATCHES, "executed")
    assert found.block_rates == rates and found.gate_logits.abs().min() >= 1  # well beyond all logits


def test_a_policy_that_meets_its_budget_stays_as_it_is() -> None:
    own = operating_point(NET, BATCHES, COST, 0.0)
    assert threshold_for(NET, BATCHES, COST, own.macs * 1.005, 0.01).threshold == 0


def test_what_the_policy_gives_as_it_is_need_not_be_measured_again() -> None:
    own = operating_point(NET, BATCHES, COST, 0.0)
    target, counts, found = between(COST, 0.4), [], []
    for known in (None, own):
        batches = passes(40)
        found.append(threshold_for(NET, batches, COST, target, 0.01, known))
        counts.append(batches.done)
    assert counts[0] == counts[1] + 1 and found[0].macs == found[1].macs and own.threshold == 0
    assert threshold_for(NET, [], COST, own.macs, 0.01, own) is own


NEXT = float(np.nextafter(np.float32(1), np.float32(2)))
"""The fp32 number after 1; in fp32, the middle between it and the one after it is that one."""
AFTER = float(np.nextafter(np.float32(NEXT), np.float32(2)))


@pytest.mark.parametrize("logits", [(1.5,) * 5, (0.5, -0.25, 3.0, -7.0, 1.0), (NEXT, AFTER, NEXT, AFTER, NEXT)])
def test_a_policy_that_treats_all_images_alike_has_few_points_and_the_search_ends(logits: tuple[float, ...]) -> None:
    torch.manual_seed(0)
    net = randomised(NetworkSpec("resnet", 14, 4, 5, gate="ff2").build())
    layers: Any = net.gate.scores()
    for layer, logit in zip(layers, logits, strict=True):
        nn.init.zeros_(layer.weight)
        nn.init.constant_(layer.bias, logit)
    cost = count(net, 8)
    every = [cost.expected_macs([float(logit > threshold) for logit in logits]) for threshold in (*logits, -math.inf)]
    for share in (0.05, 0.3, 0.45, 0.7, 0.95):
        target, batches = between(cost, share), passes(20)
        point = threshold_for(net, batches, cost, target, 0.001)
        assert point.macs == min(every, key=lambda macs: abs(macs - target))
        assert batches.done <= 4 and math.isfinite(point.threshold)
