"""Channels by their part in the joint linear map of the layers on both sides (Park et al. 2020)."""

from hybridprune.pruning.channel_scores.magnitude import lookahead
from hybridprune.pruning.method import ChannelMethod

METHOD = ChannelMethod(lookahead, relative=True)
