"""AdaPruner (Liu et al. 2021, Adaptive Channel Pruning and Effective Weights Inheritance): widths by block.

The importance of a block is the mean ``|gamma|`` over its BatchNorms, after training with L1 on them; all of its
layers keep channels in proportion to it, by bisection to the budget. The paper then tries several criteria by which
weights are inherited; here the channels of the largest scales stay, or none of the weights (``cut_weights: scratch``).
"""

from __future__ import annotations

from hybridprune.pruning.channels.scores.scale import mean_scale
from hybridprune.pruning.method import ChannelMethod
from hybridprune.pruning.methods.slimming import prepare
from hybridprune.pruning.sparse_training.protocol import SparseTraining, Sparsity

METHOD = ChannelMethod(mean_scale, allocation="adapruner", sparsity=Sparsity(before=SparseTraining(prepare)))
