"""Fisher-metric Tucker against the materialised Fisher: a cut costs the quadratic form of the change."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from hybridprune.curvature import LayerFactors, SecondMoments
from hybridprune.pruning.methods.fisher_tucker import METHOD, calibration, decompose
from tests.pruning.random_curvature import TINY, fisher, random_curvature, random_weight, source

SHAPES = [(5, 3, 3, False), (3, 4, 3, True), (2, 6, 1, False), (4, 4, 1, False)]


def damped(factors: LayerFactors, regularization: float) -> LayerFactors:
    """Each of the m factors plus the share ``regularization^(1/m)`` of its own mean eigenvalue."""
    count = 2 if factors.offset_factor is None else 3

    def plus(factor: Tensor) -> Tensor:
        amount = regularization ** (1 / count) * float(factor.trace()) / len(factor)
        return factor + amount * torch.eye(len(factor), dtype=factor.dtype)

    return dataclasses.replace(
        factors,
        input_factor=plus(factors.input_factor),
        gradient_factor=plus(factors.gradient_factor),
        offset_factor=None if factors.offset_factor is None else plus(factors.offset_factor),
    )


@pytest.mark.parametrize("damping", [TINY, 0.1])
@pytest.mark.parametrize(("c_out", "c_in", "kernel", "offsets"), SHAPES)
def test_the_loss_of_any_ranks_is_the_quadratic_form_of_the_change(
    c_out: int, c_in: int, kernel: int, offsets: bool, damping: float
) -> None:
    weight = random_weight(c_out, c_in, kernel)
    factors, moments = random_curvature(weight, seed=1, offsets=offsets)
    result = decompose(weight, factors, moments, damping)
    # In nats: the undamped Kronecker product's trace is scaled to the exact one.
    scale = moments.trace / float(fisher(factors, kernel**2).trace())
    matrix = fisher(damped(factors, damping), kernel**2) * scale
    losses = result.losses()
    assert losses.shape == (c_out + 1, c_in + 1)
    for rank_out in range(c_out + 1):
        for rank_in in range(c_in + 1):
            left = result.truncate(rank_out, rank_in).dense()
            change = (weight - left).flatten()
            torch.testing.assert_close(losses[rank_out, rank_in], 0.5 * change @ matrix @ change, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("damping", [TINY, 0.1])
@pytest.mark.parametrize(("c_out", "c_in", "kernel", "offsets"), SHAPES)
def test_scores_are_what_one_more_direction_of_a_side_costs(
    c_out: int, c_in: int, kernel: int, offsets: bool, damping: float
) -> None:
    weight = random_weight(c_out, c_in, kernel, seed=7)
    factors, moments = random_curvature(weight, seed=2, offsets=offsets)
    result = decompose(weight, factors, moments, damping)
    scale = moments.trace / float(fisher(factors, kernel**2).trace())
    matrix = fisher(damped(factors, damping), kernel**2) * scale
    for side, scores in enumerate((result.out_scores, result.in_scores)):
        for cut in range(len(scores)):
            ranks = [c_out, c_in]
            ranks[side] = cut + 1
            more = result.truncate(*ranks).dense()
            ranks[side] = cut
            lost = (more - result.truncate(*ranks).dense()).flatten()
            torch.testing.assert_close(scores[cut], 0.5 * lost @ matrix @ lost, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("offsets", [False, True])
def test_is_the_best_cut_of_one_side(offsets: bool) -> None:
    """Eckart-Young in the metric of the Fisher: no other subspace of output directions loses less."""
    weight = random_weight(5, 4, 3)
    factors, moments = random_curvature(weight, seed=1, offsets=offsets)
    matrix, wide = fisher(factors, 9), weight.flatten(1)
    best = weight - decompose(weight, factors, moments, TINY).truncate(3, 4).dense()
    least = best.flatten() @ matrix @ best.flatten()
    metric = torch.linalg.inv(factors.gradient_factor)
    for seed in range(20):
        kept = torch.randn(5, 3, generator=source(seed), dtype=torch.float64)
        basis = metric @ kept  # any subspace, with the projection that is best for it
        weights = basis.T @ factors.gradient_factor
        other = (wide - basis @ torch.linalg.solve(weights @ basis, weights @ wide)).flatten()
        assert least < other @ matrix @ other


def test_the_offset_factor_changes_which_subspace_is_best() -> None:
    """So that the tests with K prove something."""
    weight = random_weight(5, 4, 3)
    factors, moments = random_curvature(weight, seed=1, offsets=True)
    without = decompose(weight, dataclasses.replace(factors, offset_factor=None), moments, TINY)
    matrix = fisher(factors, 9)
    loss = {}
    for name, result in (("with", decompose(weight, factors, moments, TINY)), ("without", without)):
        change = (weight - result.truncate(3, 4).dense()).flatten()
        loss[name] = float(change @ matrix @ change)
    assert loss["with"] < 0.99 * loss["without"]


@pytest.mark.parametrize(("kernel", "offsets"), [(1, False), (3, False), (3, True)])
def test_calibrated_eigenvalues_sum_to_the_exact_trace(kernel: int, offsets: bool) -> None:
    weight = random_weight(4, 3, kernel)
    factors, moments = random_curvature(weight, seed=1, offsets=offsets)
    eigenvalues = torch.linalg.eigvalsh(fisher(factors, kernel**2))
    scale = calibration(factors, moments, kernel_area=kernel**2)
    assert float(scale * eigenvalues.sum()) == pytest.approx(moments.trace, rel=1e-10)


def test_damping_is_relative_to_the_curvature() -> None:
    weight = random_weight(4, 3, 3)
    factors, moments = random_curvature(weight, seed=1, offsets=True)
    smaller = dataclasses.replace(
        factors, input_factor=factors.input_factor * 1e-6, gradient_factor=factors.gradient_factor * 1e-9
    )
    there = decompose(weight, factors, moments, 0.1)
    here = decompose(weight, smaller, moments, 0.1)
    torch.testing.assert_close(here.truncate(2, 2).dense(), there.truncate(2, 2).dense(), rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(here.importance, there.importance, rtol=1e-8, atol=1e-10)


def test_a_layer_that_never_ran_is_worth_nothing() -> None:
    weight = random_weight(4, 3, 3)
    nothing = LayerFactors(torch.zeros(3, 3), torch.zeros(4, 4), 0, torch.zeros(3), torch.zeros(9, 9))
    result = decompose(weight, nothing, SecondMoments(0.0, None), 1e-6)
    assert float(result.out_scores.abs().sum()) == float(result.in_scores.abs().sum()) == 0
    torch.testing.assert_close(result.truncate(4, 3).dense(), weight, rtol=0, atol=1e-10)


def test_needs_the_exact_trace_only() -> None:
    assert METHOD.moments(False) == METHOD.moments(True) == "trace"
