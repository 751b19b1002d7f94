"""PEEL (Hou et al. 2021, Network Pruning via Resource Reallocation): an over-pruned backbone grows where it matters.

The network is trained with L1 on the scales of its BatchNorms (as in slimming). The importance of a layer is then the
mean ``|gamma|`` over the channels of its group, over the sum of all groups'. From a backbone that costs less than the
budget, each width grows with the importance of its layer until the budget is spent, in one round
(`hybridprune.pruning.budget.width_growth`). The channels of the largest scales stay.

What is left open by the description that this is written from, and chosen here:

- the importance: that of slimming, where squeezed channels follow those that they are squeezed from;
- the backbone: ``peel_backbone`` uniform or global-gamma, which leaves ``peel_pool`` of the budget to be handed out;
- the weights of the result: ``cut_weights`` inherit or scratch;
- ``round_to``: 1, which spends a budget best in small networks.
"""

from __future__ import annotations

from hybridprune.pruning.channels.scores.scale import mean_scale
from hybridprune.pruning.method import ChannelMethod
from hybridprune.pruning.methods.slimming import prepare
from hybridprune.pruning.sparse_training.protocol import SparseTraining, Sparsity

METHOD = ChannelMethod(mean_scale, allocation="peel", sparsity=Sparsity(before=SparseTraining(prepare)))
