"""MaskSparsity (Jiang et al. 2022): L1 on all scales finds the channels, L1 on theirs alone makes them superfluous.

The first training only serves to find them: the second starts from the parent's weights again, so that nothing has
pushed the channels that stay. What goes in the end is what that second training has made small, or exactly the mask.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hybridprune.config import SparsityOptions
from hybridprune.engine.pressure import Drive
from hybridprune.errors import UserError
from hybridprune.pruning.channels import ChannelGroup
from hybridprune.pruning.channels.scores.scale import bn_scale
from hybridprune.pruning.method import ChannelMethod
from hybridprune.pruning.methods.masksparsity.selection import mask_at_budget, mask_at_threshold
from hybridprune.pruning.methods.masksparsity.vote import RULES
from hybridprune.pruning.sparse_training.protocol import Removal, SparseTraining, Sparsity, Target
from hybridprune.pruning.sparse_training.scale_l1 import ScalePressure, all_scales, doomed_scales

WEIGHT = 5e-4
THRESHOLDS = {"magnitude": 0.01, "energy": 1e-4}


def prepare_all(target: Target, options: SparsityOptions) -> Drive:
    """``lambda sum |gamma|`` over all BatchNorms of the network.

    Raises UserError if a group has none that could vote afterwards, or if what goes in the end could miss a budget.
    """
    if target.budget is not None and options.mask_final == "threshold":
        raise UserError(
            "--mask_final threshold: knows no budget; leave it out, and the mask that meets the budget goes"
        )
    for group in target.groups:
        scales(target.model, group)  # not after hours of training
    return Drive(ScalePressure(all_scales(target.model), _weight(options)))


def prepare_masked(target: Target, options: SparsityOptions) -> Drive:
    """``lambda sum |gamma|`` over the channels that will go; UserError if the threshold is below all scales."""
    if target.budget is None and not any(target.removed.values()):
        raise UserError(
            f"--mask_threshold {_threshold(options):g}: no BatchNorm can lose a channel at it (--mask_rule "
            f"{options.mask_rule}); raise it, --sparsity_weight or --sparse_epochs, or give --target_flops"
        )
    return Drive(ScalePressure(doomed_scales(target), _weight(options)))


def _weight(options: SparsityOptions) -> float:
    return WEIGHT if options.sparsity_weight is None else options.sparsity_weight


def _threshold(options: SparsityOptions) -> float:
    return THRESHOLDS[options.mask_rule] if options.mask_threshold is None else options.mask_threshold


def select(target: Target, options: SparsityOptions) -> Removal:
    """The channels that the BatchNorms of each group vote out: at the published threshold, or one that meets a budget.

    Raises UserError if a group has no BatchNorm with a scale.
    """
    levels = [RULES[options.mask_rule](scales(target.model, group)) for group in target.groups]
    if target.budget is None:
        gone = mask_at_threshold(target.space, levels, _threshold(options))
    else:
        gone = mask_at_budget(target.space, levels, target.budget)
    return {group.name: channels.tolist() for group, channels in zip(target.groups, gone, strict=True)}


def select_again(target: Target, options: SparsityOptions) -> Removal:
    """The channels that go after the second training: voted out once more without a budget, else the mask.

    That vote takes a masked channel that stayed large no more. Raises UserError if it takes none.
    """
    if target.budget is not None or options.mask_final == "mask":
        return target.removed
    gone = select(target, options)
    if not any(gone.values()):
        raise UserError(
            f"--mask_final threshold: the second training has left no channel at --mask_threshold "
            f"{_threshold(options):g} or below; raise --sparsity_weight or --sparse_epochs, or give --mask_final mask"
        )
    return gone


def scales(model: nn.Module, group: ChannelGroup) -> Tensor:
    """The scales of a group's BatchNorms that vote, ``[norms, channels]``; a channel's several places are several.

    BatchNorms behind depthwise convolutions take the mask of those before. They vote only where there is no other.
    Raises UserError if there is none at all.
    """
    rows: dict[bool, list[Tensor]] = {False: [], True: []}
    for member in group.of("norm"):
        norm = model.get_submodule(member.layer)
        assert isinstance(norm, nn.BatchNorm2d)
        if norm.affine:
            rows[member.behind_depthwise].append(norm.weight.detach().cpu()[member.index].T)
    voting = rows[False] or rows[True]
    if not voting:
        raise UserError(f"--method masksparsity: no BatchNorm scales the channels of {group.name}; add it to --exclude")
    return torch.cat(voting)


METHOD = ChannelMethod(
    bn_scale,
    sparsity=Sparsity(
        before=SparseTraining(prepare_all),
        after=SparseTraining(prepare_masked, start="parent"),
        select=select,
        select_again=select_again,
    ),
)
