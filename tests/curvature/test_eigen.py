from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hybridprune.curvature import eigenbasis, pi_damping, power, powers


def random_moment(size: int, rank: int, seed: int = 0) -> Tensor:
    rows = torch.randn(rank, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return rows.T @ rows


def test_eigenbasis_diagonalises_each_factor_in_descending_order():
    a, g, k = random_moment(5, 9), random_moment(3, 9, seed=1), random_moment(4, 9, seed=2)
    basis = eigenbasis(a.float(), g.float(), k.float())
    found = (
        (basis.q_in, basis.lambda_in, a),
        (basis.q_out, basis.lambda_out, g),
        (basis.q_offset, basis.lambda_offset, k),
    )
    for q, eigenvalues, matrix in found:
        assert q is not None
        assert eigenvalues is not None
        assert q.dtype == eigenvalues.dtype == torch.float64
        torch.testing.assert_close(q.T @ q, torch.eye(len(q), dtype=torch.float64))
        torch.testing.assert_close(q.T @ matrix @ q, eigenvalues.diag(), rtol=1e-5, atol=1e-5)
        assert bool((eigenvalues[:-1] >= eigenvalues[1:]).all())


def test_there_is_no_offset_basis_without_an_offset_factor():
    basis = eigenbasis(random_moment(3, 5), random_moment(2, 5))
    assert (basis.q_offset, basis.lambda_offset) == (None, None)


def test_eigenvalues_below_zero_are_clamped():
    basis = eigenbasis(torch.diag(torch.tensor([-1e-3, 2.0])), torch.eye(2))
    assert basis.lambda_in.tolist() == [2.0, 0.0]


@given(exponent=st.sampled_from([0.5, 1.0, 2.0]), seed=st.integers(0, 99))
@settings(deadline=None)
def test_power_inverts_and_composes(exponent: float, seed: int):
    matrix = random_moment(4, 20, seed)
    identity = torch.eye(4, dtype=torch.float64)
    inverse = power(matrix, -exponent, damping=0.0)
    torch.testing.assert_close(power(matrix, exponent, damping=0.0) @ inverse, identity, rtol=1e-7, atol=1e-7)
    half = power(matrix, exponent / 2, damping=0.0)
    torch.testing.assert_close(half @ half, power(matrix, exponent, damping=0.0))


def test_powers_of_one_basis_are_those_of_their_own():
    matrix = random_moment(6, 20, seed=1)
    for found, exponent in zip(powers(matrix, (0.5, -0.5, 2.0), 0.1), (0.5, -0.5, 2.0), strict=True):
        assert torch.equal(found, power(matrix, exponent, 0.1))


def test_power_one_adds_damping_relative_to_the_mean_eigenvalue():
    matrix = random_moment(4, 2)
    expected = matrix + 0.1 * matrix.trace() / 4 * torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(power(matrix, 1.0, damping=0.1), expected)
    torch.testing.assert_close(power(1e-9 * matrix, 1.0, damping=0.1), 1e-9 * expected)


@pytest.mark.parametrize(("matrix", "damping"), [(torch.zeros(3, 3), 0.1), (torch.diag(torch.tensor([1.0, 0.0])), 0.0)])
def test_negative_power_of_a_singular_matrix_is_refused(matrix: Tensor, damping: float):
    with pytest.raises(ValueError, match="singular"):
        power(matrix, -0.5, damping)


def test_damping_of_two_factors_is_that_of_martens_and_grosse():
    a, g, regularization = random_moment(5, 9), 1e-4 * random_moment(3, 9, seed=1), 0.03
    mean_a, mean_g = a.trace() / 5, g.trace() / 3
    pi, total = (mean_a / mean_g).sqrt(), regularization * mean_a * mean_g
    expected = [(pi * total.sqrt()).item(), (total.sqrt() / pi).item()]
    assert pi_damping([a, g], regularization) == pytest.approx(expected, rel=1e-12)


def test_damping_of_three_factors_has_the_total_and_follows_their_scales():
    factors = [random_moment(5, 9), 1e-4 * random_moment(3, 9, seed=1), 7 * random_moment(4, 9, seed=2)]
    amounts = pi_damping(factors, 0.03)
    means = [factor.trace().item() / len(factor) for factor in factors]
    assert math.prod(amounts) == pytest.approx(0.03 * math.prod(means))
    shares = [amount / mean for amount, mean in zip(amounts, means, strict=True)]
    assert shares == pytest.approx([shares[0]] * 3)
    # the share is what `power` takes
    damped = factors[1] + amounts[1] * torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(power(factors[1], 1.0, damping=shares[1]), damped)
