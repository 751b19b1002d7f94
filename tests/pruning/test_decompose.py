"""Both methods against the materialised Fisher: whatever a cut is said to cost is the quadratic form of the change."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hybridprune.curvature import LayerFactors, SecondMoments, eigenbasis
from hybridprune.pruning.decompose import METHODS, calibration, eigendamage, fisher_tucker
from tests.pruning.cases import random_curvature, random_factor, source

TINY = 1e-13
"""Damping that is below every tolerance here."""


def random_weight(c_out: int, c_in: int, kernel: int, seed: int = 0) -> Tensor:
    return torch.randn(c_out, c_in, kernel, kernel, generator=source(seed), dtype=torch.float64)


def fisher(factors: LayerFactors, kernel: int) -> Tensor:
    """The Kronecker approximation as a matrix on ``weight.flatten()``: offsets are independent and alike."""
    channels = torch.kron(factors.gradient_factor.contiguous(), factors.input_factor.contiguous())
    return factors.positions * torch.kron(channels, torch.eye(kernel**2, dtype=torch.float64))


@st.composite
def layers(draw: st.DrawFn) -> tuple[Tensor, LayerFactors, SecondMoments]:
    """A layer of any shape, whose factors may be of low rank, or 0 where no gradient ever arrived."""
    c_out, c_in, kernel = draw(st.integers(1, 6)), draw(st.integers(1, 6)), draw(st.sampled_from([1, 3]))
    seed = draw(st.integers(0, 1000))
    input_factor = random_factor(c_in, draw(st.integers(0, c_in)), seed)
    gradient_factor = random_factor(c_out, draw(st.integers(0, c_out)), seed + 1)
    alive = bool(input_factor.trace() * gradient_factor.trace() > 0)
    weight = random_weight(c_out, c_in, kernel, seed + 2)
    entries = torch.rand(weight.shape, generator=source(seed + 3), dtype=torch.float64) * alive
    moments = SecondMoments(float(entries.sum()), entries)
    return weight, LayerFactors(input_factor, gradient_factor, 4 * alive), moments


@pytest.mark.parametrize("method", METHODS)
@given(layer=layers())
def test_all_directions_give_the_weight_back(method: str, layer: tuple[Tensor, LayerFactors, SecondMoments]) -> None:
    weight, factors, moments = layer
    c_out, c_in = weight.shape[:2]
    result = METHODS[method](weight, factors, moments, 1e-2)
    torch.testing.assert_close(result.truncate(c_out, c_in).dense(), weight, rtol=0, atol=1e-10)


@pytest.mark.parametrize("method", METHODS)
@given(layer=layers())
def test_rotations_are_orthonormal_and_scores_descend(
    method: str, layer: tuple[Tensor, LayerFactors, SecondMoments]
) -> None:
    weight, factors, moments = layer
    c_out, c_in = weight.shape[:2]
    result = METHODS[method](weight, factors, moments, 1e-2)
    for scores, length in ((result.out_scores, c_out), (result.in_scores, c_in)):
        assert scores.shape == (length,)
        assert bool((scores >= 0).all() and (scores.diff() <= 0).all())
    kept_out, kept_in = (c_out + 1) // 2, (c_in + 1) // 2
    cut = result.truncate(kept_out, kept_in)
    assert cut.core.shape == (kept_out, kept_in, *weight.shape[2:])
    for columns in (result.out_basis, result.in_basis, cut.rotate_out, cut.rotate_in.T):
        identity = torch.eye(columns.shape[1], dtype=torch.float64)
        torch.testing.assert_close(columns.T @ columns, identity, rtol=0, atol=1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_a_layer_that_never_ran_is_worth_nothing(method: str) -> None:
    weight = random_weight(4, 3, 3)
    factors = LayerFactors(torch.zeros(3, 3), torch.zeros(4, 4), 0)
    result = METHODS[method](weight, factors, SecondMoments(0.0, torch.zeros_like(weight)), 1e-2)
    assert float(result.out_scores.sum()) == float(result.in_scores.sum()) == 0


@pytest.mark.parametrize(("c_out", "c_in", "kernel"), [(5, 3, 3), (2, 6, 1), (4, 4, 3)])
@pytest.mark.parametrize("method", METHODS)
def test_scores_of_a_cut_side_are_the_quadratic_form_of_the_change(
    method: str, c_out: int, c_in: int, kernel: int
) -> None:
    weight = random_weight(c_out, c_in, kernel)
    factors, moments = random_curvature(weight, seed=1)
    matrix = fisher(factors, kernel)
    if method == "fisher-tucker":
        result = fisher_tucker(weight, factors, moments, TINY)
        matrix = matrix * (moments.trace / matrix.trace())  # in nats by the exact trace
    else:
        result = eigendamage(weight, factors, None, TINY)
    for side, scores in enumerate((result.out_scores, result.in_scores)):
        for kept in range(1, len(scores) + 1):
            ranks = [c_out, c_in]
            ranks[side] = kept
            change = (weight - result.truncate(*ranks).dense()).flatten()
            cost = 0.5 * change @ matrix @ change
            torch.testing.assert_close(scores[kept:].sum(), cost, rtol=1e-8, atol=1e-9)


def test_fisher_tucker_is_the_best_cut_of_one_side() -> None:
    """Eckart-Young in the metric of the Fisher: no other subspace of output directions loses less."""
    weight = random_weight(5, 4, 3)
    factors, moments = random_curvature(weight, seed=1)
    matrix, wide = fisher(factors, 3), weight.flatten(1)
    best = weight - fisher_tucker(weight, factors, moments, TINY).truncate(3, 4).dense()
    least = best.flatten() @ matrix @ best.flatten()
    metric = torch.linalg.inv(factors.gradient_factor)
    for seed in range(20):
        kept = torch.randn(5, 3, generator=source(seed), dtype=torch.float64)
        basis = metric @ kept  # any subspace, with the projection that is best for it
        weights = basis.T @ factors.gradient_factor
        other = (wide - basis @ torch.linalg.solve(weights @ basis, weights @ wide)).flatten()
        assert least < other @ matrix @ other


@pytest.mark.parametrize(("c_out", "c_in", "kernel"), [(5, 3, 3), (2, 6, 1)])
def test_corrected_eigenvalues_are_read_in_the_eigenbasis(c_out: int, c_in: int, kernel: int) -> None:
    weight = random_weight(c_out, c_in, kernel)
    factors, moments = random_curvature(weight, seed=1)
    assert moments.entries is not None
    basis = eigenbasis(factors.input_factor, factors.gradient_factor)
    result = eigendamage(weight, factors, moments, TINY)
    for side, scores in enumerate((result.out_scores, result.in_scores)):
        for kept in range(1, len(scores) + 1):
            ranks = [c_out, c_in]
            ranks[side] = kept
            change = weight - result.truncate(*ranks).dense()
            cost = torch.zeros((), dtype=torch.float64)
            for row in range(kernel):
                for column in range(kernel):
                    rotated = basis.q_out.T @ change[:, :, row, column] @ basis.q_in
                    cost += 0.5 * (moments.entries[:, :, row, column] * rotated**2).sum()
            torch.testing.assert_close(scores[kept:].sum(), cost, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("kernel", [1, 3])
def test_calibrated_eigenvalues_sum_to_the_exact_trace(kernel: int) -> None:
    weight = random_weight(4, 3, kernel)
    factors, moments = random_curvature(weight, seed=1)
    eigenvalues = torch.linalg.eigvalsh(fisher(factors, kernel))
    scale = calibration(factors, moments, kernel_area=kernel**2)
    assert float(scale * eigenvalues.sum()) == pytest.approx(moments.trace, rel=1e-10)


def test_damping_is_relative_to_the_curvature() -> None:
    weight = random_weight(4, 3, 3)
    factors, moments = random_curvature(weight, seed=1)
    smaller = LayerFactors(factors.input_factor * 1e-6, factors.gradient_factor * 1e-9, factors.positions)
    there = fisher_tucker(weight, factors, moments, 0.1).truncate(2, 2).dense()
    here = fisher_tucker(weight, smaller, moments, 0.1).truncate(2, 2).dense()
    torch.testing.assert_close(here, there, rtol=1e-8, atol=1e-10)
