"""GReg-1, growing regularisation of filters chosen by their magnitude (Wang et al. 2021).

``lambda_t / 2 ||w_i||^2`` on the filters i that will go, those of the smallest ``||w_i||_1``; lambda_t rises by a fixed
step every few iterations, to a ceiling. Then they are cut.
"""

from __future__ import annotations

from hybridprune.config import SparsityOptions
from hybridprune.engine.pressure import Drive
from hybridprune.pruning.channels.scores.magnitude import l1
from hybridprune.pruning.method import ChannelMethod
from hybridprune.pruning.sparse_training.growing_l2 import GrowingL2, L2Growth, doomed_filters
from hybridprune.pruning.sparse_training.protocol import SparseTraining, Sparsity, Target

CEILING = 1.0


def prepare(target: Target, options: SparsityOptions) -> Drive:
    """L2 on the filters that will go, growing to ``sparsity_weight``; 1 by default."""
    ceiling = CEILING if options.sparsity_weight is None else options.sparsity_weight
    growth = L2Growth(ceiling, options.greg_interval, options.greg_rise)
    return Drive(GrowingL2(doomed_filters(target), growth))


METHOD = ChannelMethod(l1, relative=True, sparsity=Sparsity(after=SparseTraining(prepare)))
