"""EigenDamage against the materialised Fisher, and against per-image gradients where it is corrected."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hybridprune.curvature import EigenBasis, LayerFactors, SecondMoments, eigenbasis
from hybridprune.pruning.directions.decomposition import Decomposition
from hybridprune.pruning.methods.eigendamage import METHOD, decompose
from tests.pruning.random_curvature import fisher, random_curvature, random_weight, source

SHAPES = [(5, 3, 3, False), (3, 4, 3, True), (2, 6, 1, False), (4, 4, 1, False)]


def assert_losses_are(result: Decomposition, weight: Tensor, matrix: Tensor) -> None:
    """All losses and scores are the quadratic form of the change."""
    c_out, c_in = weight.shape[:2]
    losses = result.losses()
    assert losses.shape == (c_out + 1, c_in + 1)
    for rank_out in range(c_out + 1):
        for rank_in in range(c_in + 1):
            change = (weight - result.truncate(rank_out, rank_in).dense()).flatten()
            torch.testing.assert_close(losses[rank_out, rank_in], 0.5 * change @ matrix @ change, rtol=1e-8, atol=1e-9)
    for side, scores in enumerate((result.out_scores, result.in_scores)):
        for cut in range(len(scores)):
            ranks = [c_out, c_in]
            ranks[side] = cut + 1
            more = result.truncate(*ranks).dense()
            ranks[side] = cut
            lost = (more - result.truncate(*ranks).dense()).flatten()
            torch.testing.assert_close(scores[cut], 0.5 * lost @ matrix @ lost, rtol=1e-8, atol=1e-9)


def rotation(basis: EigenBasis, kernel_area: int) -> Tensor:
    """The eigenbasis as an orthogonal matrix on ``weight.flatten()``."""
    q_offset = torch.eye(kernel_area, dtype=torch.float64) if basis.q_offset is None else basis.q_offset
    return torch.kron(torch.kron(basis.q_out.contiguous(), basis.q_in.contiguous()), q_offset.contiguous())


@pytest.mark.parametrize(("c_out", "c_in", "kernel", "offsets"), SHAPES)
def test_uncorrected_losses_are_quadratic_forms_of_the_kronecker_product(
    c_out: int, c_in: int, kernel: int, offsets: bool
) -> None:
    weight = random_weight(c_out, c_in, kernel)
    factors, _ = random_curvature(weight, seed=1, offsets=offsets)
    assert_losses_are(decompose(weight, factors, None, 1e-2), weight, fisher(factors, kernel**2))


@pytest.mark.parametrize(("c_out", "c_in", "kernel", "offsets"), SHAPES)
def test_corrected_losses_are_quadratic_forms_of_the_images_gradients(
    c_out: int, c_in: int, kernel: int, offsets: bool
) -> None:
    """The entries are the diagonal of the gradients' second moment in the eigenbasis, worked out image by image."""
    weight = random_weight(c_out, c_in, kernel)
    factors, _ = random_curvature(weight, seed=1, offsets=offsets)
    turn = rotation(eigenbasis(factors.input_factor, factors.gradient_factor, factors.offset_factor), kernel**2)
    gradients = torch.randn(7, weight.numel(), generator=source(2), dtype=torch.float64)
    diagonal = torch.stack([(turn.T @ gradient) ** 2 for gradient in gradients]).mean(0)
    moments = SecondMoments(float(diagonal.sum()), diagonal.view_as(weight))
    matrix = turn @ torch.diag(diagonal) @ turn.T
    assert_losses_are(decompose(weight, factors, moments, 1e-2), weight, matrix)


def test_rotations_are_the_eigenvectors_in_the_order_of_their_scores() -> None:
    weight = random_weight(5, 4, 3)
    weight[:, 0] *= 10  # so that the eigenvalues alone do not make the order
    weight[0] *= 10
    factors, _ = random_curvature(weight, seed=1)
    result = decompose(weight, factors, None, 1e-2)
    for columns, factor, scores in (
        (result.out_basis, factors.gradient_factor, result.out_scores),
        (result.in_basis, factors.input_factor, result.in_scores),
    ):
        found = columns.T @ factor @ columns
        torch.testing.assert_close(found, torch.diag(found.diagonal()), rtol=0, atol=1e-9)
        # By importance, of which the eigenvalue is but one part.
        assert bool((scores.diff() < 0).all()) and not bool((found.diagonal().diff() < 0).all())


def test_a_layer_that_never_ran_is_worth_nothing() -> None:
    weight = random_weight(4, 3, 3)
    nothing = LayerFactors(torch.zeros(3, 3), torch.zeros(4, 4), 0, torch.zeros(3), torch.zeros(9, 9))
    for moments in (None, SecondMoments(0.0, torch.zeros_like(weight))):
        result = decompose(weight, nothing, moments, 1e-6)
        assert float(result.out_scores.abs().sum()) == float(result.in_scores.abs().sum()) == 0
        torch.testing.assert_close(result.truncate(4, 3).dense(), weight, rtol=0, atol=1e-10)


def test_needs_entries_only_where_it_is_corrected() -> None:
    assert METHOD.moments(False) is None and METHOD.moments(True) == "entries"
