"""Scores from the weights alone, and none at all (pure)."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from hybridprune.pruning.channels import ChannelGroup
from hybridprune.pruning.channels.group import Role
from hybridprune.pruning.channels.scores.statistics import Statistics, sum_over
from hybridprune.store.seeds import generator


def random(group: ChannelGroup, statistics: Statistics) -> Tensor:
    """Uniform in [0, 1), by the seed and the group's name."""
    draw = generator(statistics.seed, "random channels", group.name)
    return torch.rand(group.channels, generator=draw, dtype=torch.float64)


def l1(group: ChannelGroup, statistics: Statistics) -> Tensor:
    """L1 norm of the filter (Li et al. 2017, section 3.1), over the mean of its layer's so that layers compare."""

    def scores(layer: str) -> Tensor:
        return _relative(statistics.weight(layer).abs().sum((1, 2)))

    return sum_over(group, group.of("producer"), scores)


def read_weight(group: ChannelGroup, statistics: Statistics) -> Tensor:
    """L1 norm of all weights that read the channel: 0 for one that nobody does."""

    def scores(layer: str) -> Tensor:
        return statistics.weight(layer).abs().sum((0, 2))

    return sum_over(group, group.of("consumer"), scores)


def uniform(group: ChannelGroup, statistics: Statistics) -> Tensor:
    """Rank of the L1 score within the group, (rank + 1) / n: one threshold takes the same share of every group."""
    return share_of_rank(l1(group, statistics))


def group_l2(group: ChannelGroup, statistics: Statistics) -> Tensor:
    """Squared L2 norm of all weights that go with a channel, over the group's mean (Fang et al. 2023, DepGraph).

    They are its filters, the columns that read it, its depthwise kernels and its BatchNorms' scales; biases and shifts
    do not count. Torch-pruning's ``GroupMagnitudeImportance`` is the same, but leaves out depthwise kernels.
    """
    return _relative(torch.stack(_squared_norms(group, statistics)).sum(0))


def lookahead(group: ChannelGroup, statistics: Statistics) -> Tensor:
    """``|W_i|^2 gamma_i^2 |W_next[:, i]|^2``, over the group's mean (Park et al. 2020).

    The product is the squared Frobenius norm that the linear map of two layers, with the BatchNorm between them, loses
    with the channel. Published for single weights of a chain of layers, it leaves open what a group with more layers
    means: here filters add up over all producers and columns over all consumers, as if these were one layer each, and
    so do the scales and, as a fourth factor, depthwise kernels. BatchNorm makes the scale of a layer's weights
    arbitrary, so that raw products do not compare between groups; hence the mean.
    """
    return _relative(torch.stack([_relative(norms) for norms in _squared_norms(group, statistics)]).prod(0))


def _squared_norms(group: ChannelGroup, statistics: Statistics) -> list[Tensor]:
    """``[channels]`` of filters, columns, depthwise kernels and BatchNorms' scales, as far as the group has them."""

    def squares(role: Role, layer: str) -> Tensor:
        if role == "norm":
            return scale_of(statistics.layers[layer]).square()
        return statistics.weight(layer).square().sum((0, 2) if role == "consumer" else (1, 2))

    found = []
    for role in ("producer", "consumer", "depthwise", "norm"):
        members = [m for m in group.of(role) if role != "norm" or statistics.layers[m.layer].weight is not None]
        if members:
            found.append(sum_over(group, members, partial(squares, role)))
    return found


def _relative(values: Tensor) -> Tensor:
    """The values over their mean; zeros stay."""
    return values / values.mean().clamp(min=torch.finfo(values.dtype).tiny)


def share_of_rank(scores: Tensor) -> Tensor:
    """(rank + 1) / n of each score ``[n]``."""
    return (scores.argsort(stable=True).argsort() + 1).double() / len(scores)


def scale_of(norm: nn.Module) -> Tensor:
    """Scales ``[C]`` of a BatchNorm that has some, in double precision."""
    scale = norm.weight
    assert isinstance(scale, Tensor)
    return scale.detach().double()
