"""The pruning methods by name: a line where a score is all there is, else a file or a folder."""

from __future__ import annotations

from collections.abc import Mapping

from hybridprune.pruning.channels.scores import magnitude, scale, second_order, taylor
from hybridprune.pruning.method import ChannelMethod, Method
from hybridprune.pruning.methods import (
    adapruner,
    eigendamage,
    fisher_tucker,
    greg_1,
    greg_2,
    peel,
    rni,
    slimming,
)
from hybridprune.pruning.methods.masksparsity import method as masksparsity
from hybridprune.pruning.methods.nuspm import method as nuspm

METHODS: Mapping[str, Method] = {
    "fisher-tucker": fisher_tucker.METHOD,
    "eigendamage": eigendamage.METHOD,
    # Wang et al. 2019: filters, by their own block of the Kronecker-factored Fisher, without and with an update of
    # the others.
    "kron-obd": ChannelMethod(second_order.kron_obd, needs="factors"),
    "kron-obs": ChannelMethod(second_order.kron_obs, needs="factors", update=second_order.kron_obs_update),
    # Wang et al. 2019: filters, by the sum of their weights' Optimal Brain Damage, or Surgeon.
    "c-obd": ChannelMethod(second_order.c_obd, needs="factors"),
    "c-obs": ChannelMethod(second_order.c_obs, needs="factors", update=second_order.c_obs_update),
    # Molchanov et al. 2019: first-order Taylor importance.
    "taylor": ChannelMethod(taylor.taylor, needs="taylor"),
    # The criterion of network slimming (Liu et al. 2017), without its training.
    "bn-scale": ChannelMethod(scale.bn_scale),
    # Li et al. 2017: the magnitude of filters.
    "l1": ChannelMethod(magnitude.l1, relative=True),
    # The arm that every score must beat.
    "random": ChannelMethod(magnitude.random, relative=True),
    # The same share of every layer's channels, the smallest filters: uniform width.
    "uniform": ChannelMethod(magnitude.uniform, relative=True),
    "slimming": slimming.METHOD,
    # Park et al. 2020: the part in the joint linear map of the layers on both sides.
    "lookahead": ChannelMethod(magnitude.lookahead, relative=True),
    # Fang et al. 2023, torch-pruning's default: the magnitude of all weights that go with a channel.
    "group-l2": ChannelMethod(magnitude.group_l2, relative=True),
    "greg-1": greg_1.METHOD,
    "greg-2": greg_2.METHOD,
    "masksparsity": masksparsity.METHOD,
    "peel": peel.METHOD,
    "adapruner": adapruner.METHOD,
    "nuspm": nuspm.METHOD,
    # The baseline of Suteu & Guo 2022 that trains without a regulariser: the smallest BatchNorm scales, the same
    # share of every layer's.
    "ucs": ChannelMethod(scale.bn_rank, relative=True, least=3),
    "rni": rni.METHOD,
}
