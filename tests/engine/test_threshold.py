"""Thresholds: a budget is met where some threshold meets it, and a threshold is a shift of the gates."""

from __future__ import annotations

import copy

import pytest
import torch

from hybridprune.engine.evaluate import evaluate
from hybridprune.engine.threshold import WIDEST, operating_point, threshold_for
from hybridprune.measure.cost import count
from tests.cases import batches_of, random_images, random_net

NET = random_net(14)
COST = count(NET, 8)
BATCHES = batches_of(random_images(40), torch.arange(40) % 5, 16)
GRID = [operating_point(NET, BATCHES, COST, float(threshold)) for threshold in torch.linspace(-12, 12, 121)]


@pytest.mark.parametrize("wanted", [0.6, 0.75, 0.9])
def test_the_budget_is_met_as_nearly_as_any_threshold_on_a_grid_meets_it(wanted: float) -> None:
    low, high = COST.expected_macs([0.0] * 5), COST.expected_macs([1.0] * 5)
    target = low + wanted * (high - low)
    point = threshold_for(NET, BATCHES, COST, target, 0.01)
    nearest = min(abs(other.macs / target - 1) for other in GRID)
    assert abs(point.macs / target - 1) <= max(0.01, nearest + 0.01)
    shifted = copy.deepcopy(NET)
    shifted.gate.shift(-point.threshold)
    assert torch.equal(evaluate(shifted, BATCHES, "executed").decisions, point.evaluation.decisions)
    assert point.macs == COST.expected_macs(point.evaluation.block_rates)


def test_the_extremes_execute_and_skip_everything() -> None:
    everything, nothing = (operating_point(NET, BATCHES, COST, threshold) for threshold in (-WIDEST, WIDEST))
    assert everything.macs == COST.expected_macs([1.0] * 5) and nothing.macs == COST.expected_macs([0.0] * 5)
    assert threshold_for(NET, BATCHES, COST, nothing.macs, 0.01).macs == pytest.approx(nothing.macs, rel=0.02)
    expected = evaluate(NET, BATCHES, "always_on").logits
    torch.testing.assert_close(everything.evaluation.logits, expected, rtol=1e-5, atol=1e-5)


def test_a_policy_that_meets_its_budget_stays_as_it_is() -> None:
    own = operating_point(NET, BATCHES, COST, 0.0)
    assert threshold_for(NET, BATCHES, COST, own.macs * 1.005, 0.01).threshold == 0
