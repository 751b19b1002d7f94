"""Statistics that channels are scored by, and how the members of a group add up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from hybridprune.curvature import LayerFactors
from hybridprune.pruning.channels import ChannelGroup, Member


@dataclass(frozen=True)
class Statistics:
    """Measurements of a network from which its channels are scored."""

    layers: Mapping[str, nn.Module]
    """The network's modules by name."""
    factors: Mapping[str, LayerFactors] = field(default_factory=dict)
    """Of all producers; for the second-order scores."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """Why some of them have none, by name."""
    taylor: Mapping[str, Tensor] = field(default_factory=dict)
    """By `collect_taylor`; for its score."""
    saliency: Mapping[str, Tensor] = field(default_factory=dict)
    """By `collect_saliency`; for its score."""
    variance: Mapping[str, Tensor] = field(default_factory=dict)
    """By `collect_variance`; for the score global-variance."""
    scatter: Mapping[str, Tensor] = field(default_factory=dict)
    """By `collect_scatter`; for the score trace-ratio."""
    groups: Sequence[ChannelGroup] = ()
    """All that are scored; for scores that follow other groups'."""
    regularization: float = 0.0
    """Damping of what is inverted: a share of the layer's mean eigenvalue, split by pi."""
    seed: int = 0
    """For the random score."""

    def weight(self, layer: str) -> Tensor:
        """A producer's weight ``[C_out, C_in, k^2]``, in double precision."""
        weight = self.layers[layer].get_parameter("weight").detach().double()
        return weight.reshape(*weight.shape[:2], -1)


Need = Literal["factors", "taylor", "saliency", "variance", "scatter"]
"""What a score may need beside the weights: fields of `Statistics`."""

ChannelScorer = Callable[[ChannelGroup, Statistics], Tensor]
"""The scores ``[channels]`` of a group: the higher, the more its removal costs."""


def sum_over(group: ChannelGroup, members: Sequence[Member], scores: Callable[[str], Tensor]) -> Tensor:
    """Sum over the members of their layers' scores ``[outputs]``, gathered by channel: ``[channels]``, double."""
    parts = [scores(member.layer).double().cpu()[member.index].sum(1) for member in members]
    total = torch.stack(parts).sum(0)
    assert total.shape == (group.channels,)
    return total
