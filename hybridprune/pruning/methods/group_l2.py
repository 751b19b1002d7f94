"""Channels by the magnitude of all weights that go with them (Fang et al. 2023, torch-pruning's default)."""

from hybridprune.pruning.channel_scores.magnitude import group_l2
from hybridprune.pruning.method import ChannelMethod

METHOD = ChannelMethod(group_l2, relative=True)
