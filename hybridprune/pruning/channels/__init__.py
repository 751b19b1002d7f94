"""Structured pruning of whole channels: which belong together, what they cost, and how they are removed."""

from hybridprune.pruning.channels.graph import Channels, channel_groups, survey_channels
from hybridprune.pruning.channels.group import ChannelGroup, Member
from hybridprune.pruning.channels.space import ChannelSpace, channel_space
from hybridprune.pruning.channels.surgery import cut, remove_channels

__all__ = [
    "ChannelGroup",
    "ChannelSpace",
    "Channels",
    "Member",
    "channel_groups",
    "channel_space",
    "cut",
    "remove_channels",
    "survey_channels",
]
