"""The receding regulariser: the closed form against autograd, and what the paper says of its derivative."""

from __future__ import annotations

import math

import pytest
import torch

from hybridprune.pruning.pressures.receding import penalty, penalty_gradient

GRID = torch.linspace(-12, 12, 24_001, dtype=torch.float64)


@pytest.mark.parametrize("b", [0.0, 3.0, -2.0])
def test_the_closed_form_is_the_derivative(b: float) -> None:
    gamma = GRID.clone().requires_grad_()
    (derivative,) = torch.autograd.grad(penalty(gamma, b), gamma)
    torch.testing.assert_close(penalty_gradient(GRID, b), derivative, rtol=1e-9, atol=1e-15)


def test_the_penalty_is_the_formula() -> None:
    gammas, b = [-4.0, -1.0, 0.0, 2.5], 3.0
    s = [1 / (1 + math.exp(-(gamma + b))) for gamma in gammas]
    expected = sum(value * (1 - math.log(value)) for value in s)
    assert float(penalty(torch.tensor(gammas, dtype=torch.float64), b)) == pytest.approx(expected, rel=1e-12)


def test_the_push_peaks_where_the_paper_says() -> None:
    push = penalty_gradient(GRID, 3.0)
    assert bool((push > 0).all())
    assert float(push.max()) == pytest.approx(0.26, abs=0.002)
    assert float(GRID[push.argmax()]) + 3.0 == pytest.approx(-1.18, abs=0.01)


def test_the_push_is_on_weak_channels() -> None:
    weak, strong = penalty_gradient(torch.tensor([-4.0, 0.0], dtype=torch.float64), 3.0).tolist()
    assert weak > 100 * strong


def test_extreme_gammas_stay_finite() -> None:
    gamma = torch.tensor([-200.0, 200.0], requires_grad=True)
    (derivative,) = torch.autograd.grad(penalty(gamma, 3.0), gamma)
    assert penalty_gradient(gamma.detach(), 3.0).tolist() == pytest.approx([0, 0], abs=1e-30)
    assert bool(derivative.isfinite().all()) and bool(penalty(gamma, 3.0).isfinite())
