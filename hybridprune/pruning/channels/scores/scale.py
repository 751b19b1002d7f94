"""The scales of a group's BatchNorms, and of what groups without any follow (pure)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hybridprune.errors import UserError
from hybridprune.pruning.channels import ChannelGroup
from hybridprune.pruning.channels.scores.magnitude import l1, scale_of, share_of_rank
from hybridprune.pruning.channels.scores.statistics import Statistics, sum_over


def bn_scale(group: ChannelGroup, statistics: Statistics) -> Tensor:
    """``|gamma|`` of the channel's BatchNorms, compared between layers as it is (Liu et al. 2017, section 3).

    A group without one (the squeezed channels of squeeze-excite, a hidden linear layer) follows the groups that its
    layers read: its channels, in the order of their L1 norms, get the same scores. So it is as important as these, and
    one threshold takes the same share of both.

    Raises UserError if it follows no group with a BatchNorm.
    """
    return _followed(group, statistics, mean=False)


def check_scaled(model: nn.Module, groups: Sequence[ChannelGroup]) -> None:
    """Raise what `bn_scale` would: before hours of training, not after them."""
    statistics = Statistics(dict(model.named_modules()), groups=groups)
    for group in groups:
        bn_scale(group, statistics)


def bn_rank(group: ChannelGroup, statistics: Statistics) -> Tensor:
    """Rank of `bn_scale` within the group, (rank + 1) / n: one threshold takes the same share of every group."""
    return share_of_rank(bn_scale(group, statistics))


def mean_scale(group: ChannelGroup, statistics: Statistics) -> Tensor:
    """`bn_scale`, but the mean over the group's BatchNorms: their number does not make a group important.

    Raises UserError if it follows no group with a BatchNorm.
    """
    return _followed(group, statistics, mean=True)


def _followed(group: ChannelGroup, statistics: Statistics, *, mean: bool) -> Tensor:
    scores = _scores(group, statistics, {group.name}, mean)
    if scores is None:
        raise UserError(
            f"--method: no BatchNorm scales the channels of {group.name}, or those that it is computed from; add it "
            "to --exclude, or use l1"
        )
    return scores


def _scores(group: ChannelGroup, statistics: Statistics, visited: set[str], mean: bool) -> Tensor | None:
    scales = {
        member.layer: scale_of(statistics.layers[member.layer]).abs()
        for member in group.of("norm")
        if statistics.layers[member.layer].weight is not None
    }
    if scales:
        norms = [member for member in group.of("norm") if member.layer in scales]
        total = sum_over(group, norms, scales.__getitem__)
        return total / sum(member.index.shape[1] for member in norms) if mean else total
    layers = {member.layer for member in group.of("producer")}
    read = []
    for other in statistics.groups:
        if other.name not in visited and any(member.layer in layers for member in other.of("consumer")):
            read.append(_scores(other, statistics, visited | {other.name}, mean))
    followed = [scores for scores in read if scores is not None]
    if not followed:
        return None
    ranked = torch.cat(followed).sort().values
    places = (torch.arange(group.channels) + 0.5) / group.channels * len(ranked)
    scores = torch.empty(group.channels, dtype=ranked.dtype)
    scores[l1(group, statistics).argsort(stable=True)] = ranked[places.long()]
    return scores
