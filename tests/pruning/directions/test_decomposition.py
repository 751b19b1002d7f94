"""Decompositions by both methods: exact at full rank, well-scaled, and as good as Tucker can be with sweeps."""

from __future__ import annotations

import itertools

import pytest
import tensorly
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorly.decomposition import partial_tucker
from torch import Tensor

from hybridprune.curvature import LayerFactors, SecondMoments
from hybridprune.pruning.directions.decomposition import Decomposition, Factors
from tests.pruning.random_curvature import (
    DIRECTION_METHODS,
    TINY,
    fisher,
    random_curvature,
    random_factor,
    random_weight,
    source,
    valued,
)

Layer = tuple[Tensor, LayerFactors, SecondMoments]


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    """A layer of any shape, whose factors may be of low rank, or 0 where no gradient ever arrived."""
    c_out, c_in, kernel = draw(st.integers(1, 6)), draw(st.integers(1, 6)), draw(st.sampled_from([1, 3]))
    seed = draw(st.integers(0, 1000))
    input_factor = random_factor(c_in, draw(st.integers(0, c_in)), seed)
    gradient_factor = random_factor(c_out, draw(st.integers(0, c_out)), seed + 1)
    offsets = None if draw(st.booleans()) else random_factor(kernel**2, draw(st.integers(0, kernel**2)), seed + 4)
    alive = bool(input_factor.trace() * gradient_factor.trace() > 0)
    weight = random_weight(c_out, c_in, kernel, seed + 2)
    entries = torch.rand(weight.shape, generator=source(seed + 3), dtype=torch.float64) * alive
    mean = torch.zeros(c_in, dtype=torch.float64)
    factors = LayerFactors(input_factor, gradient_factor, 4 * alive, mean, offsets)
    return weight, factors, SecondMoments(float(entries.sum()), entries)


@pytest.mark.parametrize("sweeps", [0, 2])
@pytest.mark.parametrize("method", DIRECTION_METHODS)
@settings(max_examples=40)
@given(layer=layers())
def test_all_directions_give_the_weight_back(method: str, sweeps: int, layer: Layer) -> None:
    weight, factors, moments = layer
    c_out, c_in = weight.shape[:2]
    result = DIRECTION_METHODS[method].decompose(weight, factors, moments, 1e-4)
    torch.testing.assert_close(result.truncate(c_out, c_in, sweeps).dense(), weight, rtol=0, atol=1e-10)


@pytest.mark.parametrize("sweeps", [0, 2])
@pytest.mark.parametrize("method", DIRECTION_METHODS)
@settings(max_examples=40)
@given(layer=layers(), data=st.data())
def test_rotations_are_orthonormal_at_all_ranks_and_scores_descend(
    method: str, sweeps: int, layer: Layer, data: st.DataObject
) -> None:
    weight, factors, moments = layer
    c_out, c_in = weight.shape[:2]
    result = DIRECTION_METHODS[method].decompose(weight, factors, moments, 1e-4)
    for scores, length in ((result.out_scores, c_out), (result.in_scores, c_in)):
        assert scores.shape == (length,)
        assert bool((scores >= 0).all() and (scores.diff() <= 0).all())
    # Any two ranks, also those that no tensor needs both of: a 1x1 layer's matrix has but one rank.
    kept_out, kept_in = data.draw(st.integers(1, c_out)), data.draw(st.integers(1, c_in))
    cut = result.truncate(kept_out, kept_in, sweeps)
    assert cut.core.shape == (kept_out, kept_in, *weight.shape[2:])
    for columns, rank in ((cut.rotate_out, kept_out), (cut.rotate_in.T, kept_in)):
        identity = torch.eye(rank, dtype=torch.float64)
        torch.testing.assert_close(columns.T @ columns, identity, rtol=0, atol=1e-10)


def test_the_loss_of_some_ranks_is_the_worth_of_all_pairs_outside_their_block() -> None:
    importance = torch.rand(4, 3, generator=source(0), dtype=torch.float64)
    result = valued(importance)
    losses, worth = result.losses(), result.importance
    for rank_out, rank_in in itertools.product(range(5), range(4)):
        outside = sum(float(worth[o, i]) for o in range(4) for i in range(3) if o >= rank_out or i >= rank_in)
        assert float(losses[rank_out, rank_in]) == pytest.approx(outside, abs=1e-12)
    torch.testing.assert_close(result.out_scores, worth.sum(1), rtol=0, atol=1e-12)
    torch.testing.assert_close(result.in_scores, worth.sum(0), rtol=0, atol=1e-12)


def whitened(weight: Tensor, factors: LayerFactors) -> Tensor:
    """``G^(1/2) W A^(1/2) K^(1/2)``, ``[C_out, C_in, k^2]``."""
    k = torch.eye(weight[0, 0].numel(), dtype=torch.float64) if factors.offset_factor is None else factors.offset_factor
    roots = []
    for factor in (factors.gradient_factor, factors.input_factor, k):
        values, vectors = torch.linalg.eigh(factor)
        roots.append((vectors * values.clamp(min=0).sqrt()) @ vectors.T)
    return torch.einsum("po,oik,iq,kl->pql", roots[0], weight.flatten(2), roots[1], roots[2])


def weighted_error(weight: Tensor, factors: LayerFactors, cut: Factors) -> float:
    """The change in the metric of the Fisher, S left out."""
    change = (weight - cut.dense()).flatten()
    return float(change @ fisher(factors, weight[0, 0].numel()) @ change) / factors.positions


@pytest.mark.parametrize("ranks", [(3, 3), (4, 2), (2, 5), (1, 1)])
@pytest.mark.parametrize("offsets", [False, True])
def test_sweeps_find_what_tensorly_finds_in_the_whitened_tensor(offsets: bool, ranks: tuple[int, int]) -> None:
    weight = random_weight(6, 7, 3)
    factors, moments = random_curvature(weight, seed=1, offsets=offsets)
    result = DIRECTION_METHODS["fisher-tucker"].decompose(weight, factors, moments, TINY)
    tensorly.set_backend("pytorch")
    tensor = whitened(weight, factors)
    (core, sides), _ = partial_tucker(tensor, rank=list(ranks), modes=[0, 1], init="svd", n_iter_max=300, tol=0)
    theirs = float((tensor - torch.einsum("rsk,pr,qs->pqk", core, *sides)).square().sum())
    ours = weighted_error(weight, factors, result.truncate(*ranks, sweeps=300))
    assert ours == pytest.approx(theirs, rel=1e-6)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("offsets", [False, True])
def test_every_sweep_loses_less(offsets: bool, seed: int) -> None:
    weight = random_weight(6, 5, 3, seed)
    factors, moments = random_curvature(weight, seed=seed + 1, offsets=offsets)
    result = DIRECTION_METHODS["fisher-tucker"].decompose(weight, factors, moments, TINY)
    errors = [weighted_error(weight, factors, result.truncate(3, 2, sweeps)) for sweeps in (0, 1, 2, 5, 20)]
    assert all(after <= before * (1 + 1e-9) for before, after in itertools.pairwise(errors))
    assert errors[-1] < errors[0]


@pytest.mark.parametrize("seed", range(3))
def test_sweeps_of_eigendamage_lose_less_of_the_plain_kernel(seed: int) -> None:
    """Its rotated kernel has no metric of its own."""
    weight = random_weight(6, 5, 3, seed)
    factors, moments = random_curvature(weight, seed=seed + 1)
    result = DIRECTION_METHODS["eigendamage"].decompose(weight, factors, moments, TINY)
    errors = [float((weight - result.truncate(3, 2, sweeps).dense()).square().sum()) for sweeps in (0, 1, 2, 5)]
    assert all(after <= before * (1 + 1e-9) for before, after in itertools.pairwise(errors))
    assert errors[-1] < errors[0]


@pytest.mark.parametrize("ranks", [(3, 5), (6, 2)])
@pytest.mark.parametrize("method", DIRECTION_METHODS)
def test_sweeps_leave_a_cut_of_one_side_alone(method: str, ranks: tuple[int, int]) -> None:
    """It is the best already (by the method's own scores)."""
    weight = random_weight(6, 5, 3)
    result: Decomposition = DIRECTION_METHODS[method].decompose(weight, *random_curvature(weight, 1), TINY)
    assert torch.equal(result.truncate(*ranks, sweeps=3).dense(), result.truncate(*ranks).dense())
