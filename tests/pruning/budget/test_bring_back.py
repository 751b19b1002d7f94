"""Bring-back: how many units return, from where, and which."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridprune.pruning.budget.bring_back import Pool, bring_back
from hybridprune.pruning.budget.greedy import cut_at_ratio, importance
from hybridprune.pruning.budget.space import Cost, Space, UnitSet
from hybridprune.pruning.directions.surgery import apply_ranks
from tests.networks_and_images import random_images, random_net
from tests.pruning.random_curvature import (
    cost_of,
    forms,
    layers_of,
    random_decompositions,
    random_space,
    source,
    space_of,
)


def space_with(scores: dict[str, list[float]]) -> Space:
    return Space([UnitSet(name, torch.tensor(values), 1) for name, values in scores.items()], [], Cost(0, 0))


def pool_of(space: Space, kept: list[int]) -> Pool:
    return Pool({}).after(space, kept, 0.0)


@settings(max_examples=30)
@given(st.integers(0, 20), st.floats(0, 1), st.floats(0, 1))
def test_the_share_of_what_was_removed_comes_back(seed: int, cut: float, ratio: float) -> None:
    space = random_space(seed=seed)
    kept = cut_at_ratio(space, cut, importance)
    given_back = list(kept)
    found = bring_back(space, kept, pool_of(space, kept), ratio, source(seed))
    assert kept == given_back  # not changed in place
    full = space.everything()
    assert sum(found) - sum(kept) == round(ratio * (sum(full) - sum(kept)))
    assert all(a <= b <= c for a, b, c in zip(kept, found, full, strict=True))


def test_all_that_comes_back_makes_the_network_whole_and_nothing_leaves_it_cut() -> None:
    net = random_net(8, 8)
    images, layers = random_images(6), layers_of(net)
    expected = net(images).logits.detach()
    decompositions = random_decompositions(layers)
    space = space_of(layers, decompositions, cost_of(net))
    kept = cut_at_ratio(space, 0.5, importance)
    errors = {}
    for ratio in (0.0, 0.5, 1.0):
        copied = copy.deepcopy(net)
        found = bring_back(space, kept, pool_of(space, kept), ratio, source(0))
        apply_ranks(copied, layers_of(copied), decompositions, forms(space, found))
        errors[ratio] = float((copied(images).logits - expected).detach().abs().max())
        assert (found == kept) == (ratio == 0)
        assert cost_of(copied) == space.cost(found)
    assert errors[1.0] < 1e-5 < errors[0.5]


def test_what_returns_to_a_layer_is_the_best_of_what_it_lost() -> None:
    """With its saved components: nothing but the number of leading directions changes."""
    net = random_net(8, 8)
    (layer,) = (layer for layer in layers_of(net) if layer.name == "backbone.blocks.0.conv1")
    decompositions = random_decompositions([layer])
    space = space_of([layer], decompositions, cost_of(net))
    decomposition = decompositions[layer.name]
    found = bring_back(space, [3, 4], pool_of(space, [3, 4]), 0.4, source(0))
    assert sum(found) == 7 + round(0.4 * 9)
    ranks = space.cells[0]
    assert found != [3, 4] and ranks.cost(tuple(found)).params >= ranks.cost((3, 4)).params
    more, less = decomposition.truncate(found[1], found[0]), decomposition.truncate(4, 3)
    assert torch.equal(more.rotate_out[:, :4], less.rotate_out) and torch.equal(more.rotate_in[:3], less.rotate_in)
    for side, (scores, before) in enumerate(((decomposition.in_scores, 3), (decomposition.out_scores, 4))):
        returned, still_gone = scores[before : found[side]], scores[found[side] :]
        if len(returned) and len(still_gone):
            assert returned.min() >= still_gone.max()


def test_sets_are_drawn_in_proportion_to_the_pool() -> None:
    """One unit returns in each of many draws; chi-square with two degrees of freedom, 99.9 %."""
    space = space_with({"a": [1.0] * 9, "b": [1.0] * 9, "c": [1.0] * 9, "whole": [9.0] * 9})
    kept, shares = [5, 5, 5, 9], {"a": 1.0, "b": 2.0, "c": 5.0, "whole": 100.0}
    draw, drawn = source(0), torch.zeros(4)
    for _ in range(2000):
        found = bring_back(space, kept, Pool(shares), 1 / 12, draw)
        drawn += torch.tensor(found) - torch.tensor(kept)
    expected = torch.tensor([1.0, 2.0, 5.0]) / 8 * 2000
    assert drawn.sum() == 2000 and drawn[3] == 0
    assert float(((drawn[:3] - expected).square() / expected).sum()) < 13.8


def test_a_set_that_is_whole_again_is_not_drawn_any_more_and_worthless_ones_come_last() -> None:
    space = space_with({"a": [5.0, 4.0, 3.0], "b": [1.0, 0.0, 0.0]})
    for seed in range(10):
        assert bring_back(space, [1, 1], pool_of(space, [1, 1]), 0.5, source(seed)) == [3, 1]
        assert bring_back(space, [1, 1], pool_of(space, [1, 1]), 0.75, source(seed)) == [3, 2]
        assert bring_back(space, [1, 1], pool_of(space, [1, 1]), 1.0, source(seed)) == [3, 3]


def test_a_seed_repeats_the_draws() -> None:
    space = random_space()
    kept = cut_at_ratio(space, 0.5, importance)
    pool = pool_of(space, kept)
    one, two, other = (bring_back(space, kept, pool, 0.3, source(seed)) for seed in (0, 0, 1))
    assert one == two != other


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.9, 1.0])
def test_the_pool_is_the_weighted_mean_of_what_was_lost(momentum: float) -> None:
    space = space_with({"a": [8.0, 4.0, 2.0, 1.0], "b": [0.5, 0.25]})
    cuts = [[2, 2], [1, 1], [4, 1]]
    lost = {"a": [3.0, 7.0, 0.0], "b": [0.0, 0.25, 0.25]}
    pool = Pool({})
    for kept in cuts:
        pool = pool.after(space, kept, momentum)
    for name, values in lost.items():
        first, *later = values  # the first enters whole
        expected = momentum ** len(later) * first + sum(
            (1 - momentum) * momentum ** (len(later) - 1 - i) * value for i, value in enumerate(later)
        )
        assert pool.lost[name] == pytest.approx(expected, abs=1e-12)
