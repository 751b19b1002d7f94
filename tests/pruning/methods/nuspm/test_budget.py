"""Masks at a budget: hit, by moving what is nearest to the threshold, and left alone where it is met."""

from __future__ import annotations

import pytest
import torch

from hybridprune.pruning.budget.space import Cost, InfeasibleBudget, Space, UnitSet
from hybridprune.pruning.methods.nuspm.budget import exchanged, mask_macs, settle
from tests.pruning.methods.nuspm.test_pressure import Masked


@pytest.mark.parametrize("share", [0.25, 0.5, 0.8])
def test_settling_meets_the_budget_and_moves_what_is_nearest(share: float) -> None:
    masked = Masked(seed=3)
    target = share * masked.whole
    scalars = [mask.scalars.detach().clone() for mask in masked.masks]
    kept = [mask.kept for mask in masked.masks]
    assert not 0.98 * target <= mask_macs(masked.masks, masked.space) <= target
    moved = settle(masked.masks, masked.space, target)
    assert 0.98 * target <= mask_macs(masked.masks, masked.space) <= target
    changed = [old != mask.kept for old, mask in zip(kept, masked.masks, strict=True)]
    assert moved == sum(int(c.sum()) for c in changed) > 0
    for before, mask in zip(scalars, masked.masks, strict=True):
        off, on = before[~mask.kept], before[mask.kept]
        assert not len(off) or not len(on) or float(off.max()) <= float(on.min())
    for before, mask, change in zip(scalars, masked.masks, changed, strict=True):
        assert torch.equal(before[~change], mask.scalars[~change])
    assert settle(masked.masks, masked.space, target) == 0


@pytest.mark.full
def test_masks_within_two_percent_are_left_alone() -> None:
    masked = Masked(seed=1)
    macs = mask_macs(masked.masks, masked.space)
    for target, moves in ((macs, False), (macs * 1.0199, False), (macs * 1.025, True), (macs * 0.999, True)):
        again = Masked(seed=1)
        assert (settle(again.masks, again.space, target) > 0) == moves, target / macs


def test_a_budget_below_one_channel_a_layer_is_refused() -> None:
    masked = Masked()
    with pytest.raises(InfeasibleBudget):
        settle(masked.masks, masked.space, 10.0)


class Product:
    """A layer of so many MACs a pair."""

    sets = (0, 1)

    def __init__(self, macs: int) -> None:
        self.macs = macs

    def cost(self, kept: tuple[int, ...]) -> Cost:
        return Cost(self.macs * kept[0] * kept[1] + 3 * self.macs * kept[0], 0)

    def relaxed_macs(self, kept: tuple[int, ...]) -> float:
        return self.cost(kept).macs


def test_groups_exchange_channels_where_one_is_too_much() -> None:
    """24 x 6 and nothing to add takes 216 of 228; 19 x 9 takes all."""
    sets = [UnitSet(name, torch.zeros(n), 1) for name, n in (("a", 24), ("b", 16))]
    space = Space(sets, [Product(1)], Cost(0, 0))
    assert exchanged(space, [24, 6], 228.0) == [19, 9]
    assert exchanged(space, [24, 6], 220.0) == [24, 6]  # within 2 %
    assert exchanged(space, [24, 6], 217.0) == [24, 6]
    assert exchanged(Space(sets, [Product(100)], Cost(0, 0)), [1, 1], 450.0) == [1, 1]
