"""Bring-back: some of what a cut removed is tried once more before the next cut (pure)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from hybridprune.pruning.budget.space import Space


@dataclass(frozen=True)
class Pool:
    """The importance that each unit set lost, averaged over the cuts with a momentum."""

    lost: Mapping[str, float]

    def after(self, space: Space, kept: Sequence[int], momentum: float) -> Pool:
        """The pool after a cut: ``momentum x pooled + (1 - momentum) x lost now``, set by set.

        Sets that it does not know enter with what they lost now.
        """
        now = {units.name: float(units.scores[count:].sum()) for units, count in zip(space.sets, kept, strict=True)}
        return Pool(
            {name: momentum * self.lost.get(name, value) + (1 - momentum) * value for name, value in now.items()}
        )


def bring_back(space: Space, kept: Sequence[int], pool: Pool, ratio: float, generator: torch.Generator) -> list[int]:
    """Kept units of each set after the share ``ratio`` of the removed ones has come back.

    Sets are drawn with probability proportional to their share of the pool; each draw returns the best unit that the
    set has lost. A set that is whole again is no longer drawn, and one that lost no importance only after all others.
    """
    kept, full = [*kept], space.everything()
    weights = torch.tensor([pool.lost.get(units.name, 0.0) for units in space.sets], dtype=torch.float64)
    for _ in range(round(ratio * (sum(full) - sum(kept)))):
        cut = torch.tensor(kept) < torch.tensor(full)
        chances = torch.where(cut, weights, 0.0)
        if not bool(chances.sum() > 0):
            chances = cut.double()
        kept[int(torch.multinomial(chances, 1, generator=generator))] += 1
    return kept
