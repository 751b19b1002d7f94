"""The best single network and the best cascades at a budget, among finished runs: from their logits alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from hybridprune.commands.member_runs import MemberRun
from hybridprune.errors import UserError
from hybridprune.precision import full_precision
from hybridprune.pruning.budget.space import taken_as, target_macs
from hybridprune.report.bootstrap import Difference, paired_bootstrap
from hybridprune.routing.choose_members import Chosen, Networks, best_alone, best_cascade, search
from hybridprune.routing.price import TOLERANCE

SIZES = (2, 3)
"""Members of the cascades that are tried."""


@dataclass(frozen=True)
class Recommendation:
    """The best single network and the best cascades at a budget, among these runs."""

    members: Sequence[MemberRun]
    """Cheapest first; a choice's group counts them."""
    target_flops: float
    """As it was given."""
    alone: Chosen
    cascades: Sequence[Chosen]
    """The best of each size that fits the budget."""

    @property
    def base(self) -> MemberRun:
        """The run of the dearest network before its cut, whose FLOPs a share refers to."""
        return base_of(self.members)

    @property
    def budget_macs(self) -> float:
        """MACs of an image on average."""
        return target_macs(self.target_flops, self.base.record.dense_macs)

    @cached_property
    def ahead(self) -> Sequence[Difference]:
        """Each cascade's accuracy over that of the best single network, both of them chosen on other images."""
        alone = self.alone.judged.numpy()
        return [paired_bootstrap(cascade.judged.numpy(), alone) for cascade in self.cascades]

    @property
    def winner(self) -> Chosen:
        """The cascade that is the most ahead of the best single network, or this, if none is beyond its interval.

        One that spends more than its budget, since too few images tell a threshold, is none.
        """
        each = zip(self.ahead, self.cascades, strict=True)
        found = [(gain.mean, cascade) for gain, cascade in each if gain.beats and not overspends(cascade)]
        return max(found, key=lambda pair: pair[0])[1] if found else self.alone


@full_precision()
def recommend(members: Sequence[MemberRun], target_flops: float) -> Recommendation:
    """The best choices among runs that can be joined, cheapest first; UserError if none is within the budget."""
    dense = base_of(members).record.dense_macs
    budget = target_macs(target_flops, dense)
    logits = torch.stack([member.said.logits for member in members])
    networks = Networks(logits, members[0].said.labels, [member.record.backbone_macs for member in members])
    alone = best_alone(networks, budget)
    if alone is None:
        least = networks.macs[0]
        raise UserError(
            f"--target_flops {target_flops}: {taken_as({'--target_flops': target_flops})}the cheapest of the "
            f"{len(members)} networks takes {least / dense:.4f} of {2 * dense:,} FLOPs ({2 * least:,}); choose a "
            "budget from there, or prune one further"
        )
    scores = search(networks, budget)
    found = [best_cascade(networks, scores, size, budget) for size in SIZES]
    return Recommendation(members, target_flops, alone, [each for each in found if each is not None])


def overspends(cascade: Chosen) -> bool:
    """Whether a cascade takes more FLOPs than its budget, by more than counts as met."""
    return cascade.macs > cascade.budget_macs * (1 + TOLERANCE)


def base_of(members: Sequence[MemberRun]) -> MemberRun:
    """The run whose network, before its cut, takes the most MACs; the first of several."""
    return max(members, key=lambda member: member.record.dense_macs)
