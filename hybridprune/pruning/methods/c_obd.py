"""C-OBD (Wang et al. 2019): filters, scored by the sum of their weights' Optimal Brain Damage."""

from hybridprune.pruning.channel_scores.second_order import c_obd
from hybridprune.pruning.method import ChannelMethod

METHOD = ChannelMethod(c_obd, needs="factors")
