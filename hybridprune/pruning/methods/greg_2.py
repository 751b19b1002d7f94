"""GReg-2, growing regularisation that also chooses the filters (Wang et al. 2021).

The same small L2 on all filters tells them apart: those whose weights the loss holds least (its curvature there is
small) shrink most. Then they are chosen by their magnitude and pushed as in GReg-1.
"""

from __future__ import annotations

from hybridprune.config import SparsityOptions
from hybridprune.engine.pressure import Drive
from hybridprune.pruning.channels.scores.magnitude import l1
from hybridprune.pruning.method import ChannelMethod
from hybridprune.pruning.methods import greg_1
from hybridprune.pruning.sparse_training.growing_l2 import GrowingL2, L2Growth, all_filters
from hybridprune.pruning.sparse_training.protocol import SparseTraining, Sparsity, Target

PICK_CEILING = 0.01


def prepare_pick(target: Target, options: SparsityOptions) -> Drive:
    """A growing L2 on all filters that may go, up to a hundredth: it picks them by how they resist."""
    return Drive(GrowingL2(all_filters(target), L2Growth(PICK_CEILING, options.greg_interval, options.greg_rise)))


METHOD = ChannelMethod(
    l1, relative=True, sparsity=Sparsity(before=SparseTraining(prepare_pick), after=SparseTraining(greg_1.prepare))
)
