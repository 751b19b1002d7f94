"""The MACs of masks, and how they are made to meet a budget exactly when the loss alone has not."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch

from hybridprune.pruning.budget.greedy import cut_at_budget, importance
from hybridprune.pruning.budget.space import Budget, Space, UnitSet
from hybridprune.pruning.methods.nuspm.masks import THRESHOLD, ChannelMask

TOLERANCE = 0.02
"""The largest share of the budget that may be left unused."""


def mask_macs(masks: Sequence[ChannelMask], space: Space) -> int:
    """MACs of the network that the masks of its sets leave; of a layer without channels one stays."""
    return space.cost([max(1, int(mask.kept.sum())) for mask in masks]).macs


@torch.no_grad()
def settle(masks: Sequence[ChannelMask], space: Space, target_macs: float) -> int:
    """Move channels over the threshold, in place, unless the masks take 98 to 100 % of ``target_macs`` already.

    The threshold moves to where the target is not exceeded, and what is left is spent on the masked channels that fit,
    highest scalars first. Where one channel is more than 2 %, groups exchange channels to come nearer. A group keeps
    one channel at least. Returns how many channels have moved. Raises InfeasibleBudget if the target cannot be met.
    """
    if (1 - TOLERANCE) * target_macs <= mask_macs(masks, space) <= target_macs:
        return 0
    orders = [mask.scalars.double().cpu().sort(descending=True, stable=True) for mask in masks]
    ranked = Space(
        [UnitSet(units.name, order.values, 1) for units, order in zip(space.sets, orders, strict=True)],
        space.cells,
        space.other,
    )
    counts = exchanged(ranked, cut_at_budget(ranked, Budget(macs=target_macs), importance), target_macs)
    moved = 0
    for mask, order, count in zip(masks, orders, counts, strict=True):
        kept = torch.zeros(len(mask.scalars), dtype=torch.bool)
        kept[order.indices[:count]] = True
        kept = kept.to(mask.scalars.device)
        moved += int((kept != mask.kept).sum())
        above = torch.nextafter(mask.scalars.new_tensor(THRESHOLD), mask.scalars.new_tensor(1.0))
        mask.scalars.copy_(torch.where(kept, mask.scalars.clamp(min=above), mask.scalars.clamp(max=THRESHOLD)))
    return moved


def exchanged(space: Space, kept: Sequence[int], target_macs: float) -> list[int]:
    """Widths ``kept``, which do not exceed the target, or nearer ones if they miss it by more than 2 %.

    One group gives up some units, as few as possible, another one takes what fits, and so on while that comes nearer.
    """
    best, macs = list(kept), space.cost(kept).macs
    for given in range(1, max(kept)):
        for giver, taker in product(range(len(kept)), repeat=2):
            if macs >= (1 - TOLERANCE) * target_macs:
                return best
            if giver == taker or kept[giver] <= given:
                continue
            trial = list(kept)
            trial[giver] -= given
            while trial[taker] < len(space.sets[taker].scores):
                trial[taker] += 1
                if (cost := space.cost(trial).macs) > target_macs:
                    break
                if cost > macs:
                    best, macs = list(trial), cost
    return best if best == list(kept) else exchanged(space, best, target_macs)
