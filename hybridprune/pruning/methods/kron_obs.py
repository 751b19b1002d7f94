"""Kron-OBS (Wang et al. 2019): as Kron-OBD, with the other filters making up for the removed ones."""

from hybridprune.pruning.channel_scores.second_order import kron_obs, kron_obs_update
from hybridprune.pruning.method import ChannelMethod

METHOD = ChannelMethod(kron_obs, needs="factors", update=kron_obs_update)
