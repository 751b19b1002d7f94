"""Allocations by name."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import get_args

import pytest
import torch

from hybridprune.config import CutOptions
from hybridprune.errors import UserError
from hybridprune.pruning.allocate import ALLOCATIONS, BY_LAYER, allocate
from hybridprune.pruning.budget import greedy
from hybridprune.pruning.budget.space import Budget, Cost, InfeasibleBudget, Space, UnitSet
from hybridprune.pruning.budget.width_growth import Goal, Growth
from hybridprune.pruning.directions import rate_distortion
from tests.pruning.random_curvature import random_space

OF_DIRECTIONS = [name for name in ALLOCATIONS if name not in BY_LAYER]


@dataclass(frozen=True)
class Channels:
    """A cell that has no ranks to choose."""

    sets: tuple[int, ...] = (0,)

    def cost(self, kept: tuple[int, ...]) -> Cost:
        return Cost(10 * kept[0], kept[0])

    def relaxed_macs(self, kept: tuple[int, ...]) -> float:
        return 10.0 * kept[0]


def test_the_options_know_all_of_them() -> None:
    (field,) = (field for field in dataclasses.fields(CutOptions) if field.name == "allocation")
    assert set(get_args(field.type) or field.metadata["choices"]) == {*ALLOCATIONS, "auto"}


def test_a_name_is_an_allocation_with_a_budget_or_a_ratio() -> None:
    space = random_space()
    budget = Budget(macs=0.5 * space.cost(space.everything()).macs)
    by_budget, by_ratio = (
        {name: allocate(space, name, ratio=0.3, budget=each) for name in OF_DIRECTIONS} for each in (budget, None)
    )
    for name, order in greedy.ORDERS.items():
        assert by_budget[name] == greedy.cut_at_budget(space, budget, order)
        assert by_ratio[name] == greedy.cut_at_ratio(space, 0.3, order)
    assert by_budget["rate_distortion"] == rate_distortion.cut_at_budget(space, budget)
    assert by_ratio["rate_distortion"] == rate_distortion.cut_at_ratio(space, 0.3)
    for plans in (by_budget, by_ratio):
        assert len({tuple(plan) for plan in plans.values()}) == len(OF_DIRECTIONS)


@pytest.mark.parametrize("name", OF_DIRECTIONS)
def test_an_impossible_budget_is_refused(name: str) -> None:
    space = random_space(limit=0.5)
    with pytest.raises(InfeasibleBudget) as error:
        allocate(space, name, ratio=0.5, budget=Budget(macs=1))
    kept = allocate(space, name, ratio=0.5, budget=Budget(macs=error.value.floor.macs))
    assert space.cost(kept).macs == error.value.floor.macs


def test_ranks_need_directions() -> None:
    space = Space([UnitSet("a", torch.tensor([4.0, 3.0, 2.0, 1.0]), 1)], [Channels()], Cost(5, 5))
    with pytest.raises(UserError, match="--allocation rate_distortion"):
        allocate(space, "rate_distortion", ratio=0.5, budget=None)
    for name in greedy.ORDERS:
        assert allocate(space, name, ratio=0.5, budget=None) == [2]
        assert allocate(space, name, ratio=0.0, budget=Budget(macs=25)) == [2]


@pytest.mark.parametrize("name", BY_LAYER)
def test_widths_need_channels(name: str) -> None:
    with pytest.raises(UserError, match=f"--allocation {name}"):
        allocate(random_space(), name, ratio=0.5, budget=None)
    space = Space([UnitSet("a", torch.tensor([4.0, 3.0, 2.0, 1.0]), 1)], [Channels()], Cost(5, 5))
    assert allocate(space, name, ratio=0.5, budget=None) == [2]
    assert allocate(space, name, ratio=0.0, budget=Budget(macs=35)) == [3]
    growth = Growth(round_to=2)
    assert allocate(space, name, ratio=0.0, budget=Budget(macs=35), growth=growth) == [2]
    assert BY_LAYER[name](space, Goal(0.0, Budget(macs=35)), growth) == [2]
