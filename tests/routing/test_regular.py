"""Entropy and rate bounds in closed form."""

from __future__ import annotations

import math

import pytest
import torch

from hybridprune.routing.regular import entropy, outside_bounds


def test_entropy_by_hand() -> None:
    execute = torch.tensor([[0.5, 0.5], [0.0, 0.25]], dtype=torch.float64)
    quarter = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert float(entropy(execute)) == pytest.approx((2 * math.log(2) + quarter) / 2)


def test_only_rates_outside_of_the_bounds_cost() -> None:
    execute = torch.tensor([[0.0, 1.0, 0.4], [0.2, 1.0, 0.6]], requires_grad=True)
    loss = outside_bounds(execute, 0.3)
    assert float(loss.detach()) == pytest.approx(0.2**2 + 0.3**2)
    loss.backward()
    gradient = torch.tensor([-2 * 0.2 / 2, 2 * 0.3 / 2, 0.0]).expand(2, 3)
    torch.testing.assert_close(execute.grad, gradient)
    assert float(outside_bounds(torch.tensor([[0.0, 1.0]]), 0.0)) == 0
