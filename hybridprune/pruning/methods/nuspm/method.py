"""NuSPM, pruning from scratch by shared masks, a budget of MACs and nuclear norms (Lee et al., WACV 2024).

One mask for all layers of a channel group, so one for a residual stage, is learnt with the weights; see ``masks`` for
how it acts and ``pressure`` for what shapes it. After the training exactly the masked channels go.
"""

from __future__ import annotations

from hybridprune.config import SparsityOptions
from hybridprune.engine.pressure import Drive
from hybridprune.errors import UserError
from hybridprune.pruning.budget.space import InfeasibleBudget
from hybridprune.pruning.channels.scores.magnitude import read_weight
from hybridprune.pruning.method import ChannelMethod
from hybridprune.pruning.methods.nuspm.masks import attach_masks, mask_parameters, unread_channels
from hybridprune.pruning.methods.nuspm.pressure import MaskPressure, masked_filters
from hybridprune.pruning.sparse_training.masked_reading import fold_masks
from hybridprune.pruning.sparse_training.protocol import Removal, SparseTraining, Sparsity, Target

MASKED = "masked"
"""The masked network, beside the reconfigured one of a run."""


def prepare(target: Target, options: SparsityOptions) -> Drive:
    """Give the groups masks and press on them; UserError without a reachable budget of FLOPs or without an epoch."""
    budget = None if target.budget is None else target.budget.macs
    if target.budget is None or budget is None or target.budget.params is not None:
        raise UserError("--method nuspm: trains masks towards a budget of FLOPs; give --target_flops, and no other")
    if not options.sparse_epochs:
        raise UserError("--sparse_epochs 0: --method nuspm learns in them what to cut; give some")
    if options.sparsity_weight is not None:
        raise UserError(
            f"--sparsity_weight {options.sparsity_weight}: --method nuspm has two; give --alpha_mac, --alpha_nuc"
        )
    floor = target.space.cost([1] * len(target.groups))
    if floor.macs > budget:
        whole = target.space.cost(target.space.everything())
        raise UserError(
            f"--target_flops: below one channel in every group, what --method nuspm can reach; of the network that is "
            f"to be cut, {InfeasibleBudget(floor).of(whole)}"
        )
    masks = attach_masks(target.model, target.groups)
    pressure = MaskPressure(
        [masks[group.name] for group in target.groups],
        masked_filters(target.model, target.groups, masks),
        target.space,
        budget,
        alpha_mac=options.alpha_mac,
        alpha_nuc=options.alpha_nuc,
        nuclear_interval=options.nuclear_interval,
        freeze_at=options.freeze_at,
    )
    return Drive(pressure, undecayed=frozenset(mask_parameters(target.model)), metrics=pressure.metrics)


def select(target: Target, options: SparsityOptions) -> Removal | None:
    """The masked channels, one of each group left; None if that misses the budget, as before any training."""
    del options
    removed = {group.name: unread_channels(target.model, group) for group in target.groups}
    kept = [group.channels - len(removed[group.name]) for group in target.groups]
    if target.budget is not None and not target.budget.allows(target.space.cost(kept)):
        return None
    return removed


METHOD = ChannelMethod(
    read_weight,
    sparsity=Sparsity(before=SparseTraining(prepare, fresh=True), conclude=fold_masks, select=select, keeps=MASKED),
    coupled=True,
)
