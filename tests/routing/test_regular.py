"""Entropy and rate bounds in closed form."""

from __future__ import annotations

import math

import pytest
import torch

from hybridprune.config import RoutingOptions
from hybridprune.routing.loss import gate_bounds
from hybridprune.routing.regular import entropy, outside_bounds
from tests.routing.three_gates import batch_of, labelled


def test_entropy_by_hand() -> None:
    execute = torch.tensor([[0.5, 0.5], [0.0, 0.25]], dtype=torch.float64)
    quarter = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert float(entropy(execute)) == pytest.approx((2 * math.log(2) + quarter) / 2)


def test_the_entropys_gradient_is_the_log_odds_of_skipping() -> None:
    execute = torch.tensor([[0.5, 0.1], [0.9, 0.25]], dtype=torch.float64, requires_grad=True)
    entropy(execute).backward()
    torch.testing.assert_close(execute.grad, ((1 - execute) / execute).log().detach() / 2)


@pytest.mark.parametrize("logit", [-200.0, -20.0, 20.0, 200.0])
def test_saturated_gates_have_no_entropy_and_a_finite_gradient(logit: float) -> None:
    logits = torch.tensor([[logit, 0.0]], requires_grad=True)
    found = entropy(logits.sigmoid())
    assert float(found.detach()) == pytest.approx(math.log(2), rel=1e-6)
    found.backward()
    torch.testing.assert_close(logits.grad, torch.zeros(1, 2), rtol=0, atol=1e-6)


def test_only_rates_outside_of_the_bounds_cost() -> None:
    execute = torch.tensor([[0.0, 1.0, 0.4], [0.2, 1.0, 0.6]], requires_grad=True)
    loss = outside_bounds(execute.mean(0), 0.3)
    assert float(loss.detach()) == pytest.approx(0.2**2 + 0.3**2)
    loss.backward()
    gradient = torch.tensor([-2 * 0.2 / 2, 2 * 0.3 / 2, 0.0]).expand(2, 3)
    torch.testing.assert_close(execute.grad, gradient)
    assert float(outside_bounds(torch.tensor([0.0, 1.0]), 0.0)) == 0


def test_the_bounds_fall_to_nothing_over_the_first_half_of_the_training() -> None:
    options = RoutingOptions(epochs=8, rate_bound=0.4, rate_bound_weight=3.0)
    execute = torch.tensor([[0.0, 0.9], [0.1, 1.0]])  # mean rates of 0.05 and 0.95
    batch = batch_of(torch.arange(2), *labelled(2))
    found = [float(gate_bounds(execute, batch, options, epoch)) for epoch in range(8)]
    bounds = [0.4, 0.3, 0.2, 0.1, 0.0, 0.0, 0.0, 0.0]
    assert found == pytest.approx([3 * 2 * max(0.0, bound - 0.05) ** 2 for bound in bounds], abs=1e-6)
    assert found[3] > 0 and found[4:] == [0] * 4
    # They fall within an epoch, too: a training may have just one.
    within = float(gate_bounds(execute, batch, options, 0.5))
    assert found[1] < within < found[0]
    assert float(gate_bounds(execute, batch, RoutingOptions(epochs=8), 0)) == 0
