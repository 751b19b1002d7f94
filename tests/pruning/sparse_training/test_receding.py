"""The receding regulariser: the closed form against autograd, and what the paper says of its derivative."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from hybridprune.engine.pressure import parameter_groups
from hybridprune.models.sigmoid_norm import bound
from hybridprune.models.vgg import VGG
from hybridprune.pruning.sparse_training.receding import RecedingPressure, penalty, penalty_gradient, receding_drive

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


def test_the_pressure_adds_the_gradient_of_the_weighted_penalty() -> None:
    gammas = [nn.Parameter(GRID[::1000].clone()), nn.Parameter(torch.tensor([-1.0, 1.0], dtype=torch.float64))]
    before = torch.linspace(-1, 1, len(gammas[0]), dtype=torch.float64)
    gammas[0].grad = before.clone()  # the second has none: nothing of the loss has reached it
    RecedingPressure(gammas, 0.25, 3.0).add_gradients(0.5)
    for gamma, start in zip(gammas, (before, torch.zeros(2, dtype=torch.float64)), strict=True):
        (derivative,) = torch.autograd.grad(0.25 * penalty(gamma, 3.0), gamma)
        assert gamma.grad is not None
        torch.testing.assert_close(gamma.grad - start, derivative, rtol=1e-9, atol=1e-15)


def test_gammas_learn_faster_and_do_not_decay() -> None:
    net = VGG(11, 2, 5)
    bound(net, ["features.bn1_1", "features.bn5_2"], torch.Generator().manual_seed(0))
    names = {"features.bn1_1.gamma", "features.bn5_2.gamma"}
    for weight in (0.5, 0.0):
        drive = receding_drive(net, weight, 3.0)
        assert drive.lr_factors == dict.fromkeys(names, 10.0) and set(drive.undecayed) == names
        groups = parameter_groups(net.named_parameters(), drive)
        assert [(len(g["params"]), g["factor"], g.get("weight_decay")) for g in groups] == [
            (len(list(net.parameters())) - 2, 1.0, None),
            (2, 10.0, 0.0),
        ]
        drive.pressure.add_gradients(0.0)
        assert all((p.grad is not None) == (weight > 0 and n in names) for n, p in net.named_parameters())
        net.zero_grad()
