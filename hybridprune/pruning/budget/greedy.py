"""Greedy allocation: units go one by one in an order, until a ratio or a budget is reached (pure).

Where scores tie, all sets lose (or get back) the same share of their units, and among these the first set goes first.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

from hybridprune.pruning.budget.space import Budget, Cost, InfeasibleBudget, Space, pick

Order = Callable[[Space], Iterator[int]]
"""Yields the set that loses its worst remaining unit next, until nothing may be removed any more."""


def importance(space: Space) -> Iterator[int]:
    """The lowest score of all sets goes first."""
    entries = [
        (score, gone / len(units.scores), index)
        for index, units in enumerate(space.sets)
        for gone, score in enumerate(units.scores[units.least :].flip(0).tolist(), start=1)
    ]
    return iter([index for *_, index in sorted(entries)])


def importance_per_flop(space: Space) -> Iterator[int]:
    """The lowest score over the MACs that the removal saves at this point goes first.

    The saving is that of the relaxed form, since the first removals from a dense layer save nothing by themselves.
    """
    kept = space.everything()
    full = space.everything()
    scores = [units.scores.tolist() for units in space.sets]
    prices = [_price(space, index, kept, scores) for index in range(len(kept))]
    while (lowest := min(prices, default=math.inf)) < math.inf:
        tied = [index for index, price in enumerate(prices) if price == lowest]
        cheapest = max(tied, key=lambda index: kept[index] / full[index])
        kept[cheapest] -= 1
        yield cheapest
        for index in {index for cell in space.cells_of[cheapest] for index in cell.sets}:
            prices[index] = _price(space, index, kept, scores)


def _price(space: Space, index: int, kept: Sequence[int], scores: Sequence[Sequence[float]]) -> float:
    if kept[index] <= space.sets[index].least:
        return math.inf
    fewer = [*kept]
    fewer[index] -= 1
    saved = sum(c.relaxed_macs(pick(c, kept)) - c.relaxed_macs(pick(c, fewer)) for c in space.cells_of[index])
    # What saves nothing goes last.
    return min(scores[index][kept[index] - 1] / saved, sys.float_info.max) if saved > 0 else sys.float_info.max


ORDERS: Mapping[str, Order] = {"importance": importance, "importance_per_flop": importance_per_flop}


def cut_at_ratio(space: Space, ratio: float, order: Order) -> list[int]:
    """Remove the first ``ratio`` of all units, as far as the limits allow; returns how many each set keeps."""
    kept = space.everything()
    wanted = round(ratio * sum(kept))
    for _, index in zip(range(wanted), order(space), strict=False):
        kept[index] -= 1
    return kept


def cut_at_budget(space: Space, budget: Budget, order: Order) -> list[int]:
    """Remove units until the budget is met, then put back what still fits; returns how many each set keeps.

    Raises InfeasibleBudget if nothing that the limits allow meets it.
    """
    kept, cost = space.everything(), space.cost(space.everything())
    removed: list[int] = []
    # One after the other: a form with fewer MACs may have more parameters, so bisection could miss the first that fits.
    for index in order(space):
        if budget.allows(cost):
            break
        cost = _step(space, kept, cost, index, -1)
        removed.append(index)
    if not budget.allows(cost):
        raise InfeasibleBudget(cost)
    for index in reversed(removed):
        restored = _step(space, kept, cost, index, 1)
        if budget.allows(restored):
            cost = restored
        else:
            kept[index] -= 1
    return kept


def put_back(
    space: Space, kept: Sequence[int], allowed: Callable[[Sequence[int], Cost], bool], highest: float = math.inf
) -> list[int]:
    """Add units whose score is at most ``highest`` while it is ``allowed``, given the numbers kept and their cost.

    The highest score comes back first. A set from which nothing may come back now is not asked again: costs only rise.
    """
    kept, cost = [*kept], space.cost(kept)
    scores, full = [units.scores.tolist() for units in space.sets], space.everything()
    growing = [index for index in range(len(kept)) if kept[index] < full[index]]
    while growing := [i for i in growing if kept[i] < full[i] and scores[i][kept[i]] <= highest]:
        index = min(growing, key=lambda i: (-scores[i][kept[i]], kept[i] / full[i]))
        more = _step(space, kept, cost, index, 1)
        if allowed(kept, more):
            cost = more
        else:
            kept[index] -= 1
            growing.remove(index)
    return kept


def _step(space: Space, kept: list[int], cost: Cost, index: int, change: int) -> Cost:
    """Change ``kept`` in place and return the new cost: only the cells of that set are counted anew."""
    for cell in space.cells_of[index]:
        cost = cost.minus(cell.cost(pick(cell, kept)))
    kept[index] += change
    for cell in space.cells_of[index]:
        cost = cost.plus(cell.cost(pick(cell, kept)))
    return cost
