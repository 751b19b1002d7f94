"""The same share of every layer's channels, the smallest filters: uniform width."""

from hybridprune.pruning.channel_scores.magnitude import uniform
from hybridprune.pruning.method import ChannelMethod

METHOD = ChannelMethod(uniform, relative=True)
