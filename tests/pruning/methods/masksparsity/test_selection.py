"""Masks of all groups: at a threshold what each votes for, at a budget what a ranking of all channels takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from hybridprune.pruning.budget.space import Budget, Cost, Space, UnitSet
from hybridprune.pruning.methods.masksparsity.selection import mask_at_budget, mask_at_threshold
from hybridprune.pruning.methods.masksparsity.vote import vote, wishes


@dataclass(frozen=True)
class Layer:
    """Pairs of the channels of two groups."""

    sets: tuple[int, ...]

    def cost(self, kept: tuple[int, ...]) -> Cost:
        return Cost(kept[0] * kept[1], kept[0])

    def relaxed_macs(self, kept: tuple[int, ...]) -> float:
        return self.cost(kept).macs


def space_of(channels: Sequence[int], least: int = 1) -> Space:
    sets = [UnitSet(f"g{i}", torch.zeros(n), least) for i, n in enumerate(channels)]
    return Space(sets, [Layer((i, i + 1)) for i in range(len(channels) - 1)], Cost(5, 7))


def random_levels(norms: Sequence[int], channels: Sequence[int], seed: int) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.rand(n, c, generator=draw, dtype=torch.float64) for n, c in zip(norms, channels, strict=True)]


def kept_of(gone: Sequence[Tensor], channels: Sequence[int]) -> list[int]:
    assert all(g.unique().equal(g) for g in gone)
    return [n - len(g) for n, g in zip(channels, gone, strict=True)]


CHANNELS = (6, 5, 9)


@hypothesis.settings(max_examples=50)
@hypothesis.given(seed=st.integers(0, 1000), threshold=st.floats(0.0, 1.0), least=st.integers(1, 4))
def test_at_a_threshold_each_group_loses_what_it_votes_for(seed: int, threshold: float, least: int) -> None:
    levels = random_levels((1, 3, 2), CHANNELS, seed)
    gone = mask_at_threshold(space_of(CHANNELS, least), levels, threshold)
    for level, found in zip(levels, gone, strict=True):
        voted = vote(wishes(level, threshold)).nonzero().flatten().tolist()
        expected = sorted(voted, key=lambda c: float(level[:, c].mean()))[: level.shape[1] - least]
        assert found.tolist() == sorted(expected)


@hypothesis.settings(max_examples=50)
@hypothesis.given(seed=st.integers(0, 1000), share=st.floats(0.1, 1.2))
def test_with_one_batchnorm_a_group_a_budget_takes_the_lowest_of_all(seed: int, share: float) -> None:
    levels, space = random_levels((1, 1, 1), CHANNELS, seed), space_of(CHANNELS)
    budget = Budget(macs=share * space.cost(space.everything()).macs)
    ranking = sorted((float(v), g, c) for g, level in enumerate(levels) for c, v in enumerate(level[0]))
    gone: list[set[int]] = [set() for _ in CHANNELS]
    removed = []
    for _, group, channel in ranking:
        if budget.allows(space.cost([n - len(g) for n, g in zip(CHANNELS, gone, strict=True)])):
            break
        if len(gone[group]) < CHANNELS[group] - 1:
            gone[group].add(channel)
            removed.append((group, channel))
    for group, channel in reversed(removed):
        gone[group].remove(channel)
        if not budget.allows(space.cost([n - len(g) for n, g in zip(CHANNELS, gone, strict=True)])):
            gone[group].add(channel)
    found = mask_at_budget(space, levels, budget)
    assert [set(g.tolist()) for g in found] == gone


@hypothesis.settings(max_examples=100)
@hypothesis.given(seed=st.integers(0, 1000), share=st.floats(0.1, 1.0))
def test_a_budget_is_met_and_nothing_more_goes(seed: int, share: float) -> None:
    levels, space = random_levels((4, 3, 2), CHANNELS, seed), space_of(CHANNELS)
    budget = Budget(macs=share * space.cost(space.everything()).macs)
    gone = mask_at_budget(space, levels, budget)
    kept = kept_of(gone, CHANNELS)
    assert budget.allows(space.cost(kept))
    for group, number in enumerate(kept):
        more = [*kept]
        more[group] += 1
        assert number == CHANNELS[group] or not budget.allows(space.cost(more))


@pytest.mark.full
@hypothesis.settings(max_examples=100)
@hypothesis.given(seed=st.integers(0, 1000), share=st.floats(0.2, 0.9))
def test_what_a_budget_takes_is_voted_out_where_the_budget_is_just_met(seed: int, share: float) -> None:
    levels, space = random_levels((4, 3, 2), CHANNELS, seed), space_of(CHANNELS)
    budget = Budget(macs=share * space.cost(space.everything()).macs)
    gone = mask_at_budget(space, levels, budget)
    thresholds = torch.cat([level.flatten() for level in levels]).sort().values.tolist()
    masks = [mask_at_threshold(space, levels, threshold) for threshold in thresholds]
    met = [budget.allows(space.cost(kept_of(mask, CHANNELS))) for mask in masks]
    if not met[-1]:
        return
    just = [mask for before, now, mask in zip([False, *met], met, masks, strict=False) if now and not before]
    assert any(all(set(g.tolist()) <= set(m.tolist()) for g, m in zip(gone, mask, strict=True)) for mask in just)


def test_a_budget_that_nothing_meets_takes_all_that_may_go() -> None:
    levels, space = random_levels((2, 1, 3), CHANNELS, 0), space_of(CHANNELS, least=2)
    budget = Budget(macs=10)
    kept = kept_of(mask_at_budget(space, levels, budget), CHANNELS)
    assert kept == [2, 2, 2] and not budget.allows(space.floor()) and space.floor() == space.cost(kept)
