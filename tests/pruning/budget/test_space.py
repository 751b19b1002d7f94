"""Spaces of units: what a budget allows, what must stay, and a cost that is the sum of its cells'."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hybridprune.pruning.budget.space import Budget, Cost, UnitSet, least_kept
from tests.pruning.random_curvature import random_space


def test_a_budget_bounds_what_it_names_and_nothing_else() -> None:
    cost = Cost(macs=100, params=10)
    assert Budget().allows(cost) and Budget(100, 10).allows(cost)
    assert Budget(macs=100).allows(cost) and Budget(params=10).allows(cost)
    assert not Budget(macs=99.9).allows(cost) and not Budget(100, 9.9).allows(cost)


def test_scores_must_descend_and_something_must_stay() -> None:
    assert UnitSet("a", torch.tensor([2.0, 2.0, 1.0]), 2).removable == 1
    with pytest.raises(AssertionError, match="a: scores must descend"):
        UnitSet("a", torch.tensor([1.0, 2.0]), 1)
    for least in (0, 3):
        with pytest.raises(AssertionError, match="must stay"):
            UnitSet("a", torch.tensor([2.0, 1.0]), least)


@given(st.integers(1, 600), st.floats(0, 0.999), st.data())
def test_what_must_stay_leaves_the_limit_unbroken_and_is_no_more_than_that(
    channels: int, limit: float, data: st.DataObject
) -> None:
    present = data.draw(st.integers(1, channels))
    least = least_kept(channels, present, limit)
    assert 1 <= least <= present
    assert least == present or channels - least <= limit * channels + 1e-6
    assert least == 1 or channels - (least - 1) > limit * channels - 1e-6


def test_the_cells_of_a_set_are_those_whose_cost_depends_on_it() -> None:
    space = random_space()
    whole = space.cost(space.everything())
    for index, units in enumerate(space.sets):
        kept = space.everything()
        kept[index] = units.least
        alone = space.other
        for cell in space.cells:
            count = tuple(kept[i] if cell in space.cells_of[index] else len(space.sets[i].scores) for i in cell.sets)
            alone = alone.plus(cell.cost(count))
        assert space.cost(kept) == alone
        assert space.cost(kept).macs < whole.macs or units.least == len(units.scores) or alone == whole
