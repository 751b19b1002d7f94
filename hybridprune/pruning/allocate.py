"""Allocations by name: how many units go from which set (pure)."""

from __future__ import annotations

from hybridprune.errors import UserError
from hybridprune.pruning.budget import greedy, quotas, width_growth
from hybridprune.pruning.budget.space import Budget, Space
from hybridprune.pruning.budget.width_growth import Goal, Growth
from hybridprune.pruning.directions import rate_distortion
from hybridprune.pruning.directions.inner_channels import InnerCell
from hybridprune.pruning.directions.space import DirectionCell

BY_LAYER = {"peel": width_growth.peel, "adapruner": width_growth.adapruner}
ALLOCATIONS = (*greedy.ORDERS, "rate_distortion", "igq", *BY_LAYER)


def allocate(
    space: Space, allocation: str, *, ratio: float, budget: Budget | None, growth: Growth | None = None
) -> list[int]:
    """Kept units of each set of ``space``: under the budget or, without one, when the share ``ratio`` of them goes.

    Args:
        growth: of the widths, for the allocations that give to whole layers.

    Raises:
        InfeasibleBudget: if nothing that the limits allow meets the budget.
        UserError: if the allocation needs directions and the units are channels, or the other way round.
    """
    directions = [isinstance(cell, DirectionCell | InnerCell) for cell in space.cells]
    if allocation in BY_LAYER:
        if any(directions):
            raise UserError(
                f"--allocation {allocation}: gives widths to layers, and this --method cuts directions, of which a "
                "layer has two kinds; use importance, importance_per_flop or rate_distortion"
            )
        return BY_LAYER[allocation](space, Goal(ratio, budget), growth or Growth())
    if allocation == "rate_distortion":
        if not all(directions):
            raise UserError(
                "--allocation rate_distortion: chooses the ranks of both sides of a layer together, which channels do "
                "not have; use importance or importance_per_flop with this --method"
            )
        if budget is None:
            return rate_distortion.cut_at_ratio(space, ratio)
        return rate_distortion.cut_at_budget(space, budget)
    if allocation == "igq":
        return quotas.igq(space, Goal(ratio, budget))
    order = greedy.ORDERS[allocation]
    if budget is None:
        return greedy.cut_at_ratio(space, ratio, order)
    return greedy.cut_at_budget(space, budget, order)
