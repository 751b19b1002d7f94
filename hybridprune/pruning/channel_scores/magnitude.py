"""Scores from the weights alone, and none at all (pure)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hybridprune.errors import UserError
from hybridprune.pruning.channel_scores.statistics import Statistics, sum_over
from hybridprune.pruning.channels import ChannelGroup
from hybridprune.store.seeds import generator


def random(group: ChannelGroup, statistics: Statistics) -> Tensor:
    """Uniform in [0, 1), by the seed and the group's name."""
    draw = generator(statistics.seed, "random channels", group.name)
    return torch.rand(group.channels, generator=draw, dtype=torch.float64)


def l1(group: ChannelGroup, statistics: Statistics) -> Tensor:
    """L1 norm of the filter (Li et al. 2017, section 3.1), over the mean of its layer's so that layers compare."""

    def scores(layer: str) -> Tensor:
        norms = statistics.weight(layer).abs().sum((1, 2))
        return norms / norms.mean().clamp(min=torch.finfo(norms.dtype).tiny)

    return sum_over(group, group.of("producer"), scores)


def uniform(group: ChannelGroup, statistics: Statistics) -> Tensor:
    """Rank of the L1 score within the group, (rank + 1) / n: one threshold takes the same share of every group."""
    return _share_of_rank(l1(group, statistics))


def bn_scale(group: ChannelGroup, statistics: Statistics) -> Tensor:
    """``|gamma|`` of the channel's BatchNorms, compared between layers as it is (Liu et al. 2017, section 3).

    Raises UserError if a group has no BatchNorm, or one without a scale.
    """
    norms = group.of("norm")
    if not norms or any(not _norm(statistics, m.layer).affine for m in norms):
        raise UserError(
            f"no BatchNorm scales the channels of {group.name}: add it to --exclude, or choose a --method that does "
            "without (bn-scale, slimming, ucs and rni do not), such as l1"
        )
    return sum_over(group, norms, lambda layer: _norm(statistics, layer).weight.detach().abs())


def bn_rank(group: ChannelGroup, statistics: Statistics) -> Tensor:
    """Rank of `bn_scale` within the group, (rank + 1) / n: one threshold takes the same share of every group."""
    return _share_of_rank(bn_scale(group, statistics))


def _share_of_rank(scores: Tensor) -> Tensor:
    return (scores.argsort(stable=True).argsort() + 1).double() / len(scores)


def _norm(statistics: Statistics, layer: str) -> nn.BatchNorm2d:
    module = statistics.layers[layer]
    assert isinstance(module, nn.BatchNorm2d)
    return module
