"""How many units go from which set, by name of the allocation (pure)."""

from __future__ import annotations

from hybridprune.errors import UserError
from hybridprune.pruning import greedy, rate_distortion
from hybridprune.pruning.direction_space import DirectionCell
from hybridprune.pruning.space import Budget, Space

ALLOCATIONS = ("importance", "importance_per_flop", "rate_distortion")


def allocate(space: Space, allocation: str, *, ratio: float, budget: Budget | None) -> list[int]:
    """How many units each set of ``space`` keeps under the budget or, without one, when ``ratio`` of them go.

    Raises:
        InfeasibleBudget: if nothing that the limits allow meets the budget.
        UserError: if the allocation needs directions and the units are channels.
    """
    if allocation == "rate_distortion":
        if not all(isinstance(cell, DirectionCell) for cell in space.cells):
            raise UserError(
                "--allocation rate_distortion: chooses the ranks of both sides of a layer together, which channels do "
                "not have; use importance or importance_per_flop with this --method"
            )
        if budget is None:
            return rate_distortion.cut_at_ratio(space, ratio)
        return rate_distortion.cut_at_budget(space, budget)
    order = greedy.ORDERS[allocation]
    if budget is None:
        return greedy.cut_at_ratio(space, ratio, order)
    return greedy.cut_at_budget(space, budget, order)
