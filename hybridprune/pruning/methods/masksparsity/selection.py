"""The channels that all groups lose by the vote of their BatchNorms, at a threshold or at a budget (pure)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from hybridprune.pruning.budget import greedy
from hybridprune.pruning.budget.space import Budget, InfeasibleBudget, Space, UnitSet
from hybridprune.pruning.methods.masksparsity.vote import vote, wishes


def mask_at_threshold(space: Space, levels: Sequence[Tensor], threshold: float) -> list[Tensor]:
    """The channels of each group that go, ascending, as far as the space lets them.

    Args:
        space: has a set for each group, whose scores are not read.
        levels: of each group's BatchNorms, ``[norms, channels]``: the lower, the sooner a channel goes.
        threshold: a BatchNorm wants to lose channels of at most this level (`wishes`).
    """
    ranking = _Ranking.of(space, levels, threshold)
    return ranking.removed(ranking.kept)


def mask_at_budget(space: Space, levels: Sequence[Tensor], budget: Budget) -> list[Tensor]:
    """The channels of each group that go at a threshold that meets the budget, while the next smaller one does not.

    One more wish can make a group lose several channels: of what that threshold takes, those of the highest mean level
    stay that the budget allows. If the budget cannot be met, all go that the space lets go.
    """
    thresholds = torch.cat([level.flatten() for level in levels]).unique().tolist()
    # A group's loss need not grow with the threshold, so this finds a threshold that meets the budget next to one that
    # does not.
    low, high = 0, len(thresholds) - 1
    while low < high:
        middle = (low + high) // 2
        if budget.allows(space.cost(_Ranking.of(space, levels, thresholds[middle]).kept)):
            high = middle
        else:
            low = middle + 1
    ranking = _Ranking.of(space, levels, thresholds[low])
    try:
        kept = greedy.cut_at_budget(ranking.space, budget, greedy.importance)
    except InfeasibleBudget:
        kept = [units.least for units in space.sets]
    return ranking.removed(kept)


@dataclasses.dataclass(frozen=True)
class _Ranking:
    """The space with those channels last that are voted out, and within these and the others by mean level."""

    space: Space
    orders: Sequence[Tensor]
    """``[channels]`` by group: its channels, best first"""
    kept: list[int]
    """By group, with all gone that are voted out."""

    @staticmethod
    def of(space: Space, levels: Sequence[Tensor], threshold: float) -> _Ranking:
        beyond = 1 + max(float(level.max()) for level in levels)
        sets, orders, kept = [], [], []
        for units, level in zip(space.sets, levels, strict=True):
            assert level.shape[1] == len(units.scores), units.name
            gone = vote(wishes(level, threshold))
            ranked = torch.where(gone, level.mean(0), level.mean(0) + beyond).sort(descending=True, stable=True)
            sets.append(UnitSet(units.name, ranked.values, units.least))
            orders.append(ranked.indices)
            kept.append(max(units.least, len(gone) - int(gone.sum())))
        return _Ranking(dataclasses.replace(space, sets=sets), orders, kept)

    def removed(self, kept: Sequence[int]) -> list[Tensor]:
        """The channels of each group that go when so many stay, ascending."""
        return [order[number:].sort().values for order, number in zip(self.orders, kept, strict=True)]
