"""Effective sparsity as what a cut has to reach: by bisection over nested cuts (Vysogorets & Kempe 2021, section 4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hybridprune.errors import UserError
from hybridprune.measure.effective import count_weights, live_weights
from hybridprune.models.copies import copied
from hybridprune.progress_bar import bar
from hybridprune.pruning.channels import cut
from hybridprune.pruning.plan import Plan
from hybridprune.pruning.sparse_training.protocol import Target


@dataclass(frozen=True)
class EffectiveTarget:
    """The most weights that may live in the cut network."""

    wanted: float
    """The effective sparsity that the user wants in the end."""
    dense: int
    """Weights of the dense network."""
    most: float
    """What may live after this cut; after the last one ``(1 - wanted) dense``."""
    live: Callable[[nn.Module], int]
    """Counts the live weights of a network of this kind."""

    @staticmethod
    def of(wanted: float, dense: nn.Module, counted: Callable[[nn.Module], nn.Module], image: Any) -> EffectiveTarget:
        """The target of a last cut.

        Args:
            dense: the uncut network.
            counted: the part of a network of this kind that counts, which takes one tensor.
            image: one image ``[1, ...]``; UserError if it is no tensor.
        """
        if not isinstance(image, Tensor):
            raise UserError(
                f"--target_effective {wanted}: paths are looked for in networks that are called with one tensor, not "
                "by a forward of yours; give --target_params"
            )

        def live(model: nn.Module) -> int:
            return sum(live_weights(counted(model), image).values())

        weights = count_weights(counted(dense))
        return EffectiveTarget(wanted, weights, (1 - wanted) * weights, live)

    def shortfall(self, model: nn.Module) -> str | None:
        """The words for a network that misses the target after what has followed its cut; None if it meets it."""
        living = self.live(model)
        if living <= (1 - self.wanted) * self.dense:
            return None
        return (
            f"effective sparsity is {1 - living / self.dense:.4f}, below the target of {self.wanted}: weights that "
            "were 0 at the cut have been trained, and live again"
        )

    def refusal(self, living: int) -> UserError:
        """The refusal, in flags, where so many live at the least."""
        return UserError(
            f"--target_effective {self.wanted}: above what --prune_ratio_limit allows; the most is "
            f"{1 - living / self.dense:.4f} of the dense network's weights; give a smaller target, or a larger limit"
        )


def allocate_effective(plan: Plan, target: EffectiveTarget) -> list[int]:
    """Kept units of each set with which no more weights live than may; with one unit more there would be too many.

    The plan is asked for ever other ratios, cut in a copy, and the copy's live weights are counted. Where the cuts of
    two ratios are not nested, as with forms of layers, the last sentence holds of the ratios that were tried. Raises
    UserError if nothing that the limits allow reaches the target.
    """
    units, removable = sum(plan.space.everything()), sum(each.removable for each in plan.space.sets)

    def cut_to(gone: int) -> tuple[list[int], int]:
        kept = plan.allocate(gone / units, None)
        return kept, target.live(plan.sketch(kept))

    fewest, most = 0, removable  # removed units: too few, unless none need go, and enough
    found, living = cut_to(most)
    if living > target.most:
        raise target.refusal(living)
    if target.live(plan.network.model) <= target.most:
        return plan.space.everything()
    with bar(description="meeting the effective sparsity", total=(most - fewest).bit_length(), unit="cut") as shown:
        while most - fewest > 1:
            middle = (fewest + most) // 2
            kept, living = cut_to(middle)
            fewest, most, found = (fewest, middle, kept) if living <= target.most else (middle, most, found)
            shown.update()
    return found


def check_reachable(target: EffectiveTarget, network: Target) -> None:
    """Raise UserError, before a training, if no cut of its channels could reach the target.

    Which channels would go is not known yet: the last ones of each group are taken. Groups of filters, which a
    training makes, are not looked at.
    """
    if not network.groups:
        return
    smallest = copied(network.model)
    gone = [torch.arange(units.least, len(units.scores)) for units in network.space.sets]
    cut(smallest, network.groups, gone)
    if (living := target.live(smallest)) > target.most:
        raise target.refusal(living)
