"""dsp's regulariser and what its assignment descends, against autograd and plain formulas in double precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hybridprune.pruning.methods.dsp.learning import assignment_loss
from hybridprune.pruning.methods.dsp.regulariser import gradient, hard_shares, penalty, scale_of, soft_shares

FILTERS, INPUTS, GROUPS = 6, 4, 3


def drawn(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Filters ``[O, I, K]`` and shares ``[G, O]``."""
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(FILTERS, INPUTS, 9, generator=draw, dtype=torch.float64)
    logits = torch.randn(GROUPS, FILTERS, generator=draw, dtype=torch.float64)
    return weight, logits.softmax(0)


def plain(weight: Tensor, shares: Tensor) -> Tensor:
    """R as it is written, loop by loop."""
    total = weight.new_zeros(())
    for p in shares:
        spread = p.sqrt().sum() ** 2
        for i in range(INPUTS):
            total = total + spread * (p[:, None] * weight[:, i]).norm()
    return total


def test_r_and_its_gradient() -> None:
    weight, shares = drawn()
    weight.requires_grad_()
    expected = plain(weight, shares)
    assert penalty(weight, shares).item() == pytest.approx(expected.item(), rel=1e-12)
    (wanted,) = torch.autograd.grad(expected, weight)
    torch.testing.assert_close(gradient(weight.detach(), shares), wanted, rtol=1e-12, atol=1e-12)


def test_one_group_is_the_group_lasso_of_input_channels() -> None:
    weight, _ = drawn()
    one = hard_shares(torch.zeros(FILTERS, dtype=torch.int64), 1).double()
    lasso = sum(weight[:, i].norm() for i in range(INPUTS))
    assert penalty(weight, one).item() == pytest.approx(FILTERS**2 * float(lasso), rel=1e-12)


def test_hard_groups_are_pushed_each_by_itself() -> None:
    weight, _ = drawn()
    group = torch.tensor([0, 2, 2, 0, 0, 2])
    found = gradient(weight, hard_shares(group, GROUPS).double())
    for g in (0, 2):
        own = weight[group == g]
        torch.testing.assert_close(found[group == g], 9 * own / own.norm(dim=(0, 2), keepdim=True))


def test_weights_and_shares_of_zero_have_finite_gradients() -> None:
    weight = torch.zeros(2, 2, 1).requires_grad_()
    shares = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).requires_grad_()
    (penalty(weight, shares) + gradient(weight, shares).sum()).backward()
    for each in (weight, shares):
        assert each.grad is not None and bool(each.grad.isfinite().all())


def test_the_assignment_descends_the_pushed_regulariser() -> None:
    """Without a task: dR(W', p)/dp with W' = W - c dR/dW(W, p), the whole of it by autograd."""
    weight, shares = drawn()
    shares.requires_grad_()
    rate = 0.01
    inner = weight.clone().requires_grad_()
    (slope,) = torch.autograd.grad(plain(inner, shares), inner, create_graph=True)
    (wanted,) = torch.autograd.grad(plain(weight - rate * slope, shares), shares)
    pushed = (weight - rate * slope).detach()
    (found,) = torch.autograd.grad(assignment_loss(shares, weight, pushed, pushed, rate), shares)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    with pytest.raises(AssertionError):
        (direct,) = torch.autograd.grad(plain(pushed, shares), shares)
        torch.testing.assert_close(direct, wanted, rtol=1e-3, atol=1e-3)


def test_the_assignment_descends_what_the_task_makes_of_the_push() -> None:
    """A loss <a, W> by a step of lr: its part of the gradient is that of <lr a, W'> over c."""
    weight, shares = drawn()
    shares.requires_grad_()
    moved_by = 0.1 * drawn(1)[0]
    inner = weight.clone().requires_grad_()
    (slope,) = torch.autograd.grad(plain(inner, shares), inner, create_graph=True)
    (wanted,) = torch.autograd.grad((moved_by * (weight - slope)).sum(), shares)
    pushed = weight.clone()
    (found,) = torch.autograd.grad(assignment_loss(shares, weight, pushed, pushed - moved_by, 0.0), shares)
    (direct,) = torch.autograd.grad(plain(pushed - moved_by, shares), shares)
    torch.testing.assert_close(found - direct, wanted, rtol=1e-9, atol=1e-9)


def test_shares_are_drawn_as_often_as_the_logits_say() -> None:
    """Which is the largest of logits and Gumbel noise follows their softmax (Maddison et al. 2017)."""
    logits = torch.tensor([0.0, 1.0, -1.0])[:, None].expand(-1, 20_000)
    shares = soft_shares(logits, torch.rand(logits.shape, generator=torch.Generator().manual_seed(0)), 0.5)
    torch.testing.assert_close(shares.sum(0), torch.ones(20_000))
    often = torch.bincount(shares.argmax(0)) / 20_000
    torch.testing.assert_close(often, logits[:, 0].softmax(0), atol=0.015, rtol=0)


def test_the_scale_is_the_published_one() -> None:
    assert scale_of(16 * 32 * 32, 3, 4, 16) == pytest.approx(3 * 0.25**1.5)
    assert scale_of(64 * 8 * 8, 3, 2, 64) == pytest.approx(0.5 * 3 * (1 / 32) ** 1.5)
