"""The nuclear norm that masking takes away, beside torch's own norm, autograd through the SVD, and differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hybridprune.pruning.methods.nuspm.nuclear import nuclear_gap
from tests.pruning.random_curvature import random_weight

SHAPES = [(6, 5, 3), (5, 2, 1), (12, 1, 3), (1, 4, 3)]


def mask_of(size: int, seed: int = 0) -> Tensor:
    kept = torch.rand(size, generator=torch.Generator().manual_seed(seed)) > 0.4
    kept[0] = False
    return kept


def gap_by_svd(weight: Tensor, mask: Tensor) -> Tensor:
    rows = weight.flatten(1)
    whole, masked = (torch.linalg.svdvals(m).sum() for m in (rows, rows * mask[:, None]))
    return (whole - masked).abs()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_gap_and_its_gradient(shape: tuple[int, int, int]) -> None:
    weight, kept = random_weight(*shape), mask_of(shape[0])
    gap, gradient = nuclear_gap(weight, kept)
    mask = kept.double().requires_grad_()
    expected = gap_by_svd(weight, mask)
    assert torch.allclose(gap, expected, rtol=1e-6, atol=1e-6)
    assert gradient.shape == kept.shape and gradient.dtype == torch.float64
    assert not gradient[~kept].any()
    if kept.sum() > 0 and min(int(kept.sum()), weight[0].numel()) == int(kept.sum()):
        # Autograd's derivative exists for what is left when the masked rows, all 0, are left out.
        rows = weight.flatten(1)[kept]
        part = torch.ones(len(rows), dtype=torch.float64, requires_grad=True)
        u, _, vh = torch.linalg.svd((rows * part[:, None]).detach(), full_matrices=False)
        wanted = -((u @ vh) * rows).sum(1)
        (by_autograd,) = torch.autograd.grad(-torch.linalg.svdvals(rows * part[:, None]).sum(), part)
        assert torch.allclose(wanted, by_autograd, rtol=1e-9)
        assert torch.allclose(gradient[kept], by_autograd, rtol=1e-6)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_finite_differences(shape: tuple[int, int, int]) -> None:
    weight, kept = random_weight(*shape), mask_of(shape[0])
    _, gradient = nuclear_gap(weight, kept)
    step = 1e-6
    for row in kept.nonzero().flatten().tolist():
        up, down = kept.double(), kept.double()
        up[row] += step
        down[row] -= step
        difference = (gap_by_svd(weight, up) - gap_by_svd(weight, down)) / (2 * step)
        assert float(gradient[row]) == pytest.approx(float(difference), rel=1e-5)


def test_what_is_kept_is_worth_more_the_less_else_is_like_it() -> None:
    weight = torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 1.0]])
    _, gradient = nuclear_gap(weight, torch.tensor([True, True, True, False]))
    assert gradient.tolist() == pytest.approx([-3, -(2**-0.5), -(2**-0.5), 0])


def test_without_a_masked_row_there_is_neither_gap_nor_gradient() -> None:
    gap, gradient = nuclear_gap(random_weight(4, 3, 3), torch.ones(4, dtype=torch.bool))
    assert float(gap) == 0 and not gradient.any()
    gap, gradient = nuclear_gap(random_weight(4, 3, 3), torch.zeros(4, dtype=torch.bool))
    assert float(gap) == pytest.approx(float(torch.linalg.svdvals(random_weight(4, 3, 3).flatten(1)).sum()))
    assert not gradient.any()
