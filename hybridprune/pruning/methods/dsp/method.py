"""Dynamic structure pruning (Park et al. 2023, AAAI): filters learn which of them can do without the same inputs.

A training groups each layer's filters and presses on the inputs of each group, see ``learning``. Then every group loses
inputs of its own, those of the smallest energy, and what is left runs as branches.
"""

from __future__ import annotations

from torch import nn

from hybridprune.config import SparsityOptions
from hybridprune.engine.pressure import Drive
from hybridprune.errors import UserError
from hybridprune.pruning.branches.assignment import attach_logits
from hybridprune.pruning.method import BranchMethod
from hybridprune.pruning.methods.dsp.learning import GroupedLayer, GroupLearning
from hybridprune.pruning.methods.dsp.regulariser import scale_of
from hybridprune.pruning.sparse_training.protocol import SparseTraining, Sparsity, Target

WEIGHT = 2e-3


def prepare(target: Target, options: SparsityOptions) -> Drive:
    """Give each convolution logits of groups and press on them; UserError without an epoch to learn groups in."""
    groups = options.dsp_groups
    if groups > 1 and not options.sparse_epochs:
        raise UserError(
            f"--sparse_epochs 0: --method dsp learns in them which filters are a group, of {groups}; give some, or "
            "--dsp_groups 1"
        )
    layers = []
    for each in target.grouped:
        conv = target.model.get_submodule(each.layer)
        assert isinstance(conv, nn.Conv2d)
        filters, side = len(conv.weight), conv.weight[0, 0].numel() ** 0.5
        scale = scale_of(each.in_elements, side, groups, filters)
        layers.append(GroupedLayer(conv.get_parameter("weight"), attach_logits(conv, groups, filters), scale))
    weight = WEIGHT if options.sparsity_weight is None else options.sparsity_weight
    learning = GroupLearning(layers, weight, target.seed)
    return Drive(learning, metrics=learning.metrics, after_step=learning.after_step)


METHOD = BranchMethod(Sparsity(before=SparseTraining(prepare)))
