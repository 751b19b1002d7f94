"""Structured pruning of whole channels: which belong together, what they cost, and how they are removed."""

from hybridprune.pruning.channels.graph import channel_groups
from hybridprune.pruning.channels.group import ChannelGroup, Member
from hybridprune.pruning.channels.space import ChannelSpace, channel_space
from hybridprune.pruning.channels.surgery import remove_channels

__all__ = ["ChannelGroup", "ChannelSpace", "Member", "channel_groups", "channel_space", "remove_channels"]
