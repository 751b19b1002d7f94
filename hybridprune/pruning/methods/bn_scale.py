"""Channels by the scale of their BatchNorm (network slimming's criterion, Liu et al. 2017)."""

from hybridprune.pruning.channel_scores.scale import bn_scale
from hybridprune.pruning.method import ChannelMethod

METHOD = ChannelMethod(bn_scale)
