"""Scores of channels by the methods that are published. A group's score is the sum over its layers."""

from hybridprune.pruning.channels.scores.statistics import ChannelScorer, Statistics
from hybridprune.pruning.channels.scores.taylor import collect_taylor, taylor_members

__all__ = ["ChannelScorer", "Statistics", "collect_taylor", "taylor_members"]
