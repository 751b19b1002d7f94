"""Scores of channels by the methods that are published. A group's score is the sum over its layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from hybridprune.pruning.channel_scores import magnitude, second_order
from hybridprune.pruning.channel_scores.statistics import ChannelScorer, Statistics
from hybridprune.pruning.channel_scores.taylor import collect_taylor, gates, taylor
from hybridprune.pruning.channels.surgery import Update


@dataclass(frozen=True)
class ChannelScore:
    """A score, what it needs beside the weights, and how the weights make up for the channels that go, if they do."""

    score: ChannelScorer
    needs: Literal["factors", "taylor"] | None = None
    update: Callable[[Statistics], Update] | None = None


CHANNEL_SCORES: Mapping[str, ChannelScore] = {
    "kron-obd": ChannelScore(second_order.kron_obd, "factors"),
    "kron-obs": ChannelScore(second_order.kron_obs, "factors", second_order.kron_obs_update),
    "c-obd": ChannelScore(second_order.c_obd, "factors"),
    "c-obs": ChannelScore(second_order.c_obs, "factors", second_order.c_obs_update),
    "taylor": ChannelScore(taylor, "taylor"),
    "bn-scale": ChannelScore(magnitude.bn_scale),
    "l1": ChannelScore(magnitude.l1),
    "random": ChannelScore(magnitude.random),
    "uniform": ChannelScore(magnitude.uniform),
}

__all__ = ["CHANNEL_SCORES", "ChannelScore", "ChannelScorer", "Statistics", "collect_taylor", "gates"]
