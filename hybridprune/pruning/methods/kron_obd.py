"""Kron-OBD (Wang et al. 2019): filters, scored by their own block of the Kronecker-factored Fisher."""

from hybridprune.pruning.channel_scores.second_order import kron_obd
from hybridprune.pruning.method import ChannelMethod

METHOD = ChannelMethod(kron_obd, needs="factors")
