"""Ideal gas quotas against their formula and a scan over forces."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from hybridprune.pruning.budget.quotas import igq, share_lost
from hybridprune.pruning.budget.space import Budget, Cost, InfeasibleBudget, Space, UnitSet
from hybridprune.pruning.budget.width_growth import Goal

UNITS, EACH = (40, 40, 200, 200), (1, 10, 25, 25)


@dataclass(frozen=True)
class Layer:
    """A layer of so many weights a unit."""

    sets: tuple[int, ...]
    each: int

    def cost(self, kept: tuple[int, ...]) -> Cost:
        return Cost(7 * self.each * kept[0], self.each * kept[0])

    def relaxed_macs(self, kept: tuple[int, ...]) -> float:
        return self.cost(kept).macs


def space(least: int = 1) -> Space:
    sets = [UnitSet(str(i), torch.linspace(1, 0, n), least) for i, n in enumerate(UNITS)]
    return Space(sets, [Layer((i,), each) for i, each in enumerate(EACH)], Cost(0, 0))


def by_force(force: float) -> list[int]:
    sizes = [n * each for n, each in zip(UNITS, EACH, strict=True)]
    return [max(1, n - round(n * force * size / (1 + force * size))) for n, size in zip(UNITS, sizes, strict=True)]


@pytest.mark.parametrize("keep", [0.8, 0.5, 0.2])
def test_the_least_force_of_a_scan_that_meets_the_budget(keep: float) -> None:
    budget = Budget(params=keep * space().cost(space().everything()).params)
    forces = [10 ** (i / 500 - 6) for i in range(3000)]
    met = next(force for force in forces if budget.allows(space().cost(by_force(force))))
    found = igq(space(), Goal(0.0, budget))
    assert budget.allows(space().cost(found))
    # Sets that step at the same force, as the last two, step one after the other.
    assert all(0 <= a - b <= 1 for a, b in zip(found, by_force(met), strict=True))
    assert found[2] / 200 < found[1] / 40 < found[0] / 40


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.37, 0.81])
def test_so_many_units_go_as_are_asked_for_and_larger_ratios_take_more(ratio: float) -> None:
    found, more = igq(space(), Goal(ratio, None)), igq(space(), Goal(ratio + 0.1, None))
    assert sum(UNITS) - sum(found) == round(ratio * sum(UNITS))
    assert all(a >= b for a, b in zip(found, more, strict=True))


def test_limits_hold_and_what_they_do_not_reach_is_refused() -> None:
    assert igq(space(least=30), Goal(1.0, None)) == [30] * 4
    with pytest.raises(InfeasibleBudget):
        igq(space(least=30), Goal(0.0, Budget(params=100)))


def test_the_share_is_the_published_one() -> None:
    assert [share_lost(0.5, n) for n in (0, 2, 6)] == [0.0, 0.5, 0.75]
    assert share_lost(float("inf"), 0) == 1.0
