"""What a method would cut."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from hybridprune.pruning.allocate import allocate
from hybridprune.pruning.budget.space import Budget, Space
from hybridprune.pruning.budget.width_growth import Growth
from hybridprune.pruning.sparse_training.protocol import Removal


@dataclass(frozen=True)
class Proposal:
    """The units of a network with their scores. Nothing has changed yet."""

    space: Space
    allocation: str
    apply: Callable[[Sequence[int]], None]
    """Cut the network in place, down to so many units of each set."""
    describe: Callable[[Sequence[int]], list[str]]
    """One line for each layer or group."""
    removed: Callable[[Sequence[int]], Removal] = lambda kept: {}
    """The channels that would go; none where the units are directions."""
    fixed: list[int] | None = None
    """How many units each set keeps where this is decided already."""

    growth: Growth | None = None
    """Of the widths, for the allocations that give to whole layers."""
    left_alone: Mapping[str, str] = field(default_factory=dict)
    """Layers with weights from which nothing can be cut, by name, each with the reason; excluded ones are not named."""

    def allocate(self, ratio: float, budget: Budget | None) -> list[int]:
        """How many units each set keeps; raises InfeasibleBudget."""
        if self.fixed is not None:
            return list(self.fixed)
        return allocate(self.space, self.allocation, ratio=ratio, budget=budget, growth=self.growth)
