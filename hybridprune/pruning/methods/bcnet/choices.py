"""The widths that a network may have: in bins, within a budget (pure)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hybridprune.pruning.budget.greedy import put_back
from hybridprune.pruning.budget.space import Budget, InfeasibleBudget, Space
from hybridprune.pruning.methods.bcnet.bins import bins_of, edges

Widths = tuple[int, ...]
"""Of each group, in bins."""


@dataclass(frozen=True)
class WidthChoices:
    """The widths of all groups of a space that a budget allows."""

    space: Space
    budget: Budget
    edges: Sequence[Sequence[int]]
    """By group: the channels of its widths, from 0 bins to all."""
    least: Widths

    @staticmethod
    def of(space: Space, budget: Budget, bins: int) -> WidthChoices:
        """Widths of at most so many bins, with the least channels of each set; InfeasibleBudget if none is allowed."""
        steps = [edges(channels, bins_of(channels, bins)) for channels in space.everything()]
        least = [
            next(c for c, channels in enumerate(own) if channels >= units.least)
            for own, units in zip(steps, space.sets, strict=True)
        ]
        choices = WidthChoices(space, budget, steps, tuple(least))
        if not choices.allows(least):
            raise InfeasibleBudget(space.cost(choices.channels(least)))
        return choices

    def channels(self, widths: Sequence[int]) -> list[int]:
        """The channels of each group."""
        return [own[width] for own, width in zip(self.edges, widths, strict=True)]

    def sizes(self, group: int) -> list[int]:
        """The channels of each width that a group may have, ascending."""
        return list(self.edges[group][self.least[group] :])

    def allows(self, widths: Sequence[int]) -> bool:
        """Whether the network of these widths is within the budget."""
        return self.budget.allows(self.space.cost(self.channels(widths)))

    def repaired(self, widths: Sequence[int], source: torch.Generator) -> Widths:
        """Widths near these that the budget allows, while it allows no bin more in any group.

        Random groups lose a bin until the budget is met. Then groups take one, in turns and in a random order.
        """
        kept = [max(width, least) for width, least in zip(widths, self.least, strict=True)]
        while not self.allows(kept):
            able = [index for index, width in enumerate(kept) if width > self.least[index]]
            kept[able[int(torch.randint(len(able), (), generator=source))]] -= 1
        growing = torch.randperm(len(kept), generator=source).tolist()
        while growing:
            growing = [index for index in growing if self._grown(kept, index)]
        return tuple(kept)

    def _grown(self, kept: list[int], index: int) -> bool:
        """Give a group a bin more, in place, if there is one and the budget allows it."""
        kept[index] += 1
        if kept[index] < len(self.edges[index]) and self.allows(kept):
            return True
        kept[index] -= 1
        return False

    def filled(self, widths: Sequence[int]) -> list[int]:
        """The channels of repaired widths, and single ones as far as they fit: less than a bin in each group."""
        return put_back(self.space, self.channels(widths), lambda _, cost: self.budget.allows(cost))
