"""Ideal gas quotas: how sparse each layer is for its size, whatever the scores (pure).

Vysogorets & Kempe 2021 (arXiv 2107.02306) see layers as cylinders that one force F compresses: a layer of n weights
loses the share ``s = F n / (1 + F n)`` of them, a large one more. Here a set of units loses that share of its units.
"""

from __future__ import annotations

import math

from hybridprune.pruning.budget.space import Space, pick
from hybridprune.pruning.budget.width_growth import BISECTIONS, Goal, check_floor


def igq(space: Space, goal: Goal) -> list[int]:
    """Kept units of each set at the least force that meets the goal; its worst units go.

    Sets that tie step one after another, as far as the goal lets them stay. Raises InfeasibleBudget if nothing that
    the limits allow meets the goal.
    """
    check_floor(space, goal)
    sizes = weights_of(space)
    largest = max([1, *sizes])

    def kept(pressure: float) -> list[int]:
        """``pressure`` in [0, 1]: the largest set's share."""
        force = pressure / (1 - pressure) / largest if pressure < 1 else math.inf
        shares = (share_lost(force, size) for size in sizes)
        return [
            max(units.least, len(units.scores) - round(share * len(units.scores)))
            for units, share in zip(space.sets, shares, strict=True)
        ]

    if goal.allows(space, kept(0.0)):
        return kept(0.0)
    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if goal.allows(space, kept(middle)) else (middle, high)
    found = kept(high)
    for index, wider in enumerate(kept(low)):
        more = [*found[:index], wider, *found[index + 1 :]]
        found = more if goal.allows(space, more) else found
    return found


def share_lost(force: float, size: int) -> float:
    """``F n / (1 + F n)``"""
    return 1.0 if force == math.inf else force * size / (1 + force * size)


def weights_of(space: Space) -> list[int]:
    """The n of each set: parameters of all cells that it is a part of, whole."""
    full = space.everything()
    return [sum(cell.cost(pick(cell, full)).params for cell in cells) for cells in space.cells_of]
