"""Filters by their magnitude (Li et al. 2017)."""

from hybridprune.pruning.channel_scores.magnitude import l1
from hybridprune.pruning.method import ChannelMethod

METHOD = ChannelMethod(l1, relative=True)
