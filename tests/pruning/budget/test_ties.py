"""Scores that tie, or are all nothing, spend the budget as others do, and evenly."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridprune.pruning.budget import greedy
from hybridprune.pruning.budget.space import Budget, Cost, Space, UnitSet
from hybridprune.pruning.directions import rate_distortion
from hybridprune.pruning.directions.layer_forms import ConvShape
from tests.pruning.random_curvature import toy_space

SHAPES = {
    "a": ConvShape(6, 4, 9, 64, 64, False),
    "b": ConvShape(4, 8, 9, 64, 16, True),
    "c": ConvShape(8, 5, 1, 4, 4, False),
}
CUTS: dict[str, Callable[[Space, Budget], list[int]]] = {
    "importance": lambda space, budget: greedy.cut_at_budget(space, budget, greedy.importance),
    "importance_per_flop": lambda space, budget: greedy.cut_at_budget(space, budget, greedy.importance_per_flop),
    "rate_distortion": rate_distortion.cut_at_budget,
}


@dataclass(frozen=True)
class Chain:
    """A layer between two groups of channels."""

    sets: tuple[int, ...]
    macs: int

    def cost(self, kept: tuple[int, ...]) -> Cost:
        inputs, outputs = kept
        return Cost(self.macs * inputs * outputs, inputs * outputs + outputs)

    def relaxed_macs(self, kept: tuple[int, ...]) -> float:
        return self.cost(kept).macs


def chain(widths: list[int], scores: list[list[float]], macs: list[int], least: int = 1) -> Space:
    sets = [
        UnitSet(str(i), torch.tensor(sorted(own, reverse=True), dtype=torch.float64), min(least, width))
        for i, (width, own) in enumerate(zip(widths, scores, strict=True))
    ]
    return Space(sets, [Chain((i, i + 1), m) for i, m in enumerate(macs)], Cost(7, 3))


def assert_spent(space: Space, kept: list[int], budget: Budget) -> None:
    """The budget holds, and with any unit more it would not."""
    assert budget.allows(space.cost(kept))
    for index, units in enumerate(space.sets):
        assert units.least <= kept[index] <= len(units.scores)
        if kept[index] < len(units.scores):
            more = [n + (i == index) for i, n in enumerate(kept)]
            assert not budget.allows(space.cost(more)), f"one more of {units.name} would fit"


@st.composite
def chains(draw: st.DrawFn) -> Space:
    """Scores of few values, so that many tie."""
    widths = draw(st.lists(st.integers(1, 9), min_size=2, max_size=4))
    values = st.sampled_from([0.0, 0.0, 1.0, 2.0])
    scores = [draw(st.lists(values, min_size=width, max_size=width)) for width in widths]
    macs = draw(st.lists(st.integers(0, 5), min_size=len(widths) - 1, max_size=len(widths) - 1))
    return chain(widths, scores, macs)


@settings(max_examples=60, deadline=None)
@given(chains(), st.floats(0, 1), st.sampled_from(["macs", "params"]), st.sampled_from(sorted(greedy.ORDERS)))
def test_a_budget_of_channels_is_spent_whatever_the_scores(space: Space, share: float, kind: str, order: str) -> None:
    floor, whole = (getattr(space.cost(kept), kind) for kept in ([s.least for s in space.sets], space.everything()))
    budget = Budget(**{kind: floor + share * (whole - floor)})
    assert_spent(space, CUTS[order](space, budget), budget)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.3, 1.0]), st.floats(0.1, 1), st.sampled_from(sorted(CUTS)))
def test_a_budget_of_directions_is_spent_whatever_the_scores(
    seed: int, valued: float, share: float, method: str
) -> None:
    """``valued``: the share of pairs of directions that are worth anything; all these are worth the same."""
    draw = torch.Generator().manual_seed(seed)
    importances = {
        name: (torch.rand(shape.out_channels, shape.in_channels, generator=draw) < valued).double()
        for name, shape in SHAPES.items()
    }
    space = toy_space(SHAPES, importances)
    floor, whole = space.floor().macs, space.cost(space.everything()).macs
    budget = Budget(macs=floor + share * (whole - floor))
    assert_spent(space, CUTS[method](space, budget), budget)


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_ties_of_channels_take_the_same_share_of_every_set(score: float) -> None:
    space = chain([4, 8, 16], [[score] * 4, [score] * 8, [score] * 16], [1, 1])
    assert greedy.cut_at_ratio(space, 0.5, greedy.importance) == [2, 4, 8]
    half = space.cost([2, 4, 8]).macs
    for kept in (greedy.cut_at_budget(space, Budget(macs=half), greedy.importance),):
        assert kept == [2, 4, 8]


def test_worthless_channels_go_evenly_per_flop_too() -> None:
    space = chain([4, 8, 16], [[0.0] * 4, [0.0] * 8, [0.0] * 16], [1, 1])
    assert greedy.cut_at_ratio(space, 0.5, greedy.importance_per_flop) == [2, 4, 8]


@pytest.mark.parametrize("method", CUTS)
def test_worthless_directions_go_evenly_and_no_further_than_they_have_to(method: str) -> None:
    shape = ConvShape(20, 20, 9, 16, 16, False)
    space = toy_space({"a": shape, "b": shape}, {name: torch.zeros(20, 20).double() for name in "ab"})
    budget = Budget(macs=0.5 * space.cost(space.everything()).macs)
    kept = CUTS[method](space, budget)
    assert_spent(space, kept, budget)
    assert max(kept) - min(kept) <= 1, kept
    assert space.cost(kept).macs > 0.45 * space.cost(space.everything()).macs


def test_worthless_directions_go_at_a_ratio_and_no_further() -> None:
    space = toy_space(SHAPES, {n: torch.zeros(s.out_channels, s.in_channels).double() for n, s in SHAPES.items()})
    for ratio in (0.0, 0.25, 0.5):
        assert sum(rate_distortion.cut_at_ratio(space, ratio)) == int((1 - ratio) * sum(space.everything()))


def test_a_worthless_layer_beside_others_gets_what_they_leave() -> None:
    shape = ConvShape(20, 20, 9, 16, 16, False)
    ones = torch.ones(20, 20, dtype=torch.float64)
    space = toy_space({"a": shape, "b": shape}, {"a": ones, "b": 0 * ones})
    whole = space.cost(space.everything()).macs
    for method, share in itertools.product(CUTS, (0.9, 0.6)):
        kept = CUTS[method](space, Budget(macs=share * whole))
        assert kept[:2] == [20, 20], (method, "what is worth something stays")
        assert_spent(space, kept, Budget(macs=share * whole))


def test_what_saves_no_macs_goes_last() -> None:
    """A group of which nothing counts must neither end the cut nor stop it."""
    space = chain([3, 3, 3, 3], [[0.0] * 3, [1.0] * 3, [1.0] * 3, [1.0] * 3], [1, 0, 0])
    order = list(greedy.importance_per_flop(space))
    assert sorted(order) == [0, 0, 1, 1, 2, 2, 3, 3] and set(order[4:]) == {2, 3}
