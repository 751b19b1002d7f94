"""C-OBS (Wang et al. 2019): filters, scored by the sum of their weights' Optimal Brain Surgeon, which makes up."""

from hybridprune.pruning.channel_scores.second_order import c_obs, c_obs_update
from hybridprune.pruning.method import ChannelMethod

METHOD = ChannelMethod(c_obs, needs="factors", update=c_obs_update)
