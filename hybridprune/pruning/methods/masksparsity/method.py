"""MaskSparsity (Jiang et al. 2022): L1 on all scales finds the channels, L1 on theirs alone makes them superfluous.

The first training only serves to find them: the second starts from the parent's weights again, so that nothing has
pushed the channels that stay.
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

    Raises UserError if a group has none that could vote afterwards.
    """
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


def scales(model: nn.Module, group: ChannelGroup) -> Tensor:
    """The scales of a group's BatchNorms, ``[norms, channels]``; one with several places for a channel is several.

    Raises UserError if there is none.
    """
    rows = []
    for member in group.of("norm"):
        norm = model.get_submodule(member.layer)
        assert isinstance(norm, nn.BatchNorm2d)
        if norm.affine:
            rows.append(norm.weight.detach().cpu()[member.index].T)
    if not rows:
        raise UserError(f"--method masksparsity: no BatchNorm scales the channels of {group.name}; add it to --exclude")
    return torch.cat(rows)


METHOD = ChannelMethod(
    bn_scale,
    sparsity=Sparsity(
        before=SparseTraining(prepare_all), after=SparseTraining(prepare_masked, start="parent"), select=select
    ),
)
