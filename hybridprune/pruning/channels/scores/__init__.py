"""Scores of channels by the methods that are published. A group's score is the sum over its layers."""

from hybridprune.pruning.channels.scores.statistics import ChannelScorer, Need, Statistics

__all__ = ["ChannelScorer", "Need", "Statistics"]
