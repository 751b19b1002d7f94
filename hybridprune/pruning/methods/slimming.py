"""Network slimming: L1 on the scales of BatchNorms, then the channels of the smallest go (Liu et al. 2017, equation 1).

The training minimises ``loss + lambda sum |gamma|``; a channel is worth its ``|gamma|``.
"""

from __future__ import annotations

from hybridprune.config import SparsityOptions
from hybridprune.engine.pressure import Drive
from hybridprune.pruning.channels.scores.scale import bn_scale, check_scaled
from hybridprune.pruning.method import ChannelMethod
from hybridprune.pruning.sparse_training.protocol import SparseTraining, Sparsity, Target
from hybridprune.pruning.sparse_training.scale_l1 import ScalePressure, all_scales

WEIGHT = 1e-4
"""Section 4.2; 1e-5 for their ResNet and DenseNet."""


def prepare(target: Target, options: SparsityOptions) -> Drive:
    """``lambda sum |gamma|`` over all BatchNorms of the network (equation 1), also where no channel may go.

    Raises UserError if there are channels that the scales could not rank afterwards.
    """
    check_scaled(target.model, target.groups)
    weight = WEIGHT if options.sparsity_weight is None else options.sparsity_weight
    return Drive(ScalePressure(all_scales(target.model), weight))


METHOD = ChannelMethod(bn_scale, sparsity=Sparsity(before=SparseTraining(prepare)), least=3)
