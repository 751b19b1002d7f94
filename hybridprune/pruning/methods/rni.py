"""Receding Neuron Importances: bounded scales, of which the weak ones recede before the cut (Suteu & Guo 2022).

A BatchNorm scales by ``sigmoid(gamma)``, the importance of its channel; the pressure is in `receding_drive`.
"""

from __future__ import annotations

from hybridprune.config import SparsityOptions
from hybridprune.engine.pressure import Drive
from hybridprune.models.sigmoid_norm import bound, conclude
from hybridprune.pruning.channels.scores.scale import bn_scale, check_scaled
from hybridprune.pruning.method import ChannelMethod
from hybridprune.pruning.sparse_training.protocol import SparseTraining, Sparsity, Target
from hybridprune.pruning.sparse_training.receding import Setting, receding_drive
from hybridprune.store.seeds import generator


def prepare(target: Target, options: SparsityOptions) -> Drive:
    """Bind the BatchNorms of the channels that may go (`bounded`), and let the weak ones recede.

    The parent's scales become the importances, and ``gamma ~ N(0, 1)`` only where there is no parent (``sparse_start:
    scratch``, as published): redrawn scales would throw away what the network knows of its channels, and sparse
    training is short. The shifts are lost in either case; as are the signs of the scales, which are hardly ever
    negative but for channels near zero. Published nets have bounded scales everywhere; here the norms whose channels
    stay anyway keep their scale and shift. Raises UserError if channels neither have
    a BatchNorm with a scale nor follow such.
    """
    check_scaled(target.model, target.groups)
    norms = sorted({member.layer for group in target.groups for member in group.of("norm")})
    bound(target.model, norms, generator(target.seed, "gamma"))
    setting = Setting.published(target.residual).or_given(options.sparsity_weight, options.rni_shift)
    return receding_drive(target.model, *setting)


# Concluded, a scale is the importance sigmoid(gamma). Fine-tuning then has shifts again, which start at 0: nothing
# after the cut has to know another kind of BatchNorm.
METHOD = ChannelMethod(bn_scale, sparsity=Sparsity(before=SparseTraining(prepare), conclude=conclude), least=3)
