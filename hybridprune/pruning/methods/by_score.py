"""Methods that are a score of channels and no more: no training goes before the cut, the best scores stay.

The formula of each is at its function in `hybridprune.pruning.channels.scores`.
"""

from __future__ import annotations

from hybridprune.pruning.channels.scores import magnitude, saliency, scale, second_order, taylor, trace_ratio, variance
from hybridprune.pruning.method import ChannelMethod

KRON_OBD = ChannelMethod(second_order.kron_obd, needs="factors")
"""``1/2 S G_ii w_i^T (K x A) w_i``: a filter's own block of the Kronecker-factored Fisher (Wang et al. 2019, 4.1)."""

KRON_OBS = ChannelMethod(second_order.kron_obs, needs="factors", update=second_order.kron_obs_update)
"""``1/2 S w_i^T (K x A) w_i / [G^-1]_ii``: as kron-obd, while the other filters make up for it (ibid.)."""

C_OBD = ChannelMethod(second_order.c_obd, needs="factors")
"""``1/2 S sum_jo w_ijo^2 G_ii A_jj K_oo``: Optimal Brain Damage, summed over the filter (ibid.)."""

C_OBS = ChannelMethod(second_order.c_obs, needs="factors", update=second_order.c_obs_update)
"""``1/2 S sum_jo w_ijo^2 / ([G^-1]_ii [A^-1]_jj [K^-1]_oo)``: Optimal Brain Surgeon, summed over the filter (ibid.)."""

TAYLOR = ChannelMethod(taylor.taylor, needs="taylor")
"""``(gamma dL/dgamma + beta dL/dbeta)^2``: first-order Taylor importance (Molchanov et al. 2019, equations 8, 10)."""

SALIENCY = ChannelMethod(saliency.saliency, needs="saliency")
"""Mean over images of ``|sum over positions of A dL/dA|``, with the loss of the task (after Choi & Tian 2023)."""

GLOBAL_VARIANCE = ChannelMethod(variance.global_variance, relative=True, needs="variance")
"""``sum_o Var(W_oi * x_i) / sum_o Var(y_o)``, an own reading of Khetan & Karnin 2020 (PruneNet)."""

TRACE_RATIO = ChannelMethod(trace_ratio.between_share, relative=True, needs="scatter", choose=trace_ratio.best_ratio)
"""Subsets with the best ``sum b_i / sum w_i``, scatter between over within classes (after Hu et al. 2021, CATRO)."""

BN_SCALE = ChannelMethod(scale.bn_scale)
"""``|gamma|``: the criterion of network slimming (Liu et al. 2017, section 3), without its training."""

L1 = ChannelMethod(magnitude.l1, relative=True)
"""``||w_i||_1`` over its layer's mean: the magnitude of filters (Li et al. 2017, section 3.1)."""

RANDOM = ChannelMethod(magnitude.random, relative=True)
"""Uniform in [0, 1): the arm that every score must beat."""

UNIFORM = ChannelMethod(magnitude.uniform, relative=True)
"""Rank of ``||w_i||_1`` in its layer, over their number: the same share of every layer, its smallest filters."""

LOOKAHEAD = ChannelMethod(magnitude.lookahead, relative=True)
"""``||W_i||^2 gamma_i^2 ||W_next[:, i]||^2`` over its layer's mean: of the map of two layers (Park et al. 2020)."""

GROUP_L2 = ChannelMethod(magnitude.group_l2, relative=True)
"""``sum ||w||^2`` of all weights that go with a channel, over its group's mean (Fang et al. 2023, DepGraph)."""

UCS = ChannelMethod(scale.bn_rank, relative=True, least=3)
"""Rank of ``|gamma|`` in its layer, over their number: the baseline of Suteu & Guo 2022 without a regulariser."""
