"""Channels that can only go together (pure data)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from hybridprune.models.edits import channels_of
from hybridprune.models.frozen_norm import is_norm

Role = Literal["producer", "consumer", "norm", "depthwise"]
"""Convolutions and linear layers by their outputs or by their inputs; BatchNorms; depthwise convolutions."""


@dataclass(frozen=True)
class Member:
    """A layer's part in a group. A layer whose input and output are in one group is two members."""

    layer: str
    role: Role
    index: Tensor
    """``[channels, m]``: the layer's own numbers of the outputs (of a consumer: inputs) that go with each channel"""
    behind_depthwise: bool = False
    """Whether it is a BatchNorm that reads a depthwise convolution, whose channels come from elsewhere."""


@dataclass(frozen=True)
class ChannelGroup:
    """Channels of all layers that a sum, a BatchNorm or a depthwise convolution ties together."""

    name: str
    """Of the first layer that produces the channels."""
    channels: int
    coupled: bool
    """Whether an operation with several inputs joins them, as a residual sum does."""
    members: tuple[Member, ...]

    def __post_init__(self) -> None:
        assert all(m.index.shape[0] == self.channels and m.index.ndim == 2 for m in self.members), self.name

    def of(self, *roles: Role) -> tuple[Member, ...]:
        """The members in these roles."""
        return tuple(m for m in self.members if m.role in roles)


def role_of(module: nn.Module, output: bool) -> Role | None:
    """The role of a module that takes part by its output, or else by its input; None if there is no rule for it."""
    if isinstance(module, nn.Linear):
        return "producer" if output else "consumer"
    if is_norm(module):
        return "norm"
    if isinstance(module, nn.Conv2d):
        if module.groups == 1:
            return "producer" if output else "consumer"
        if module.groups == module.in_channels == module.out_channels:
            return "depthwise"
    return None


class Places:
    """The channels of many groups, numbered from 1, and where they are: in producers' outputs, in layers' inputs."""

    def __init__(self, model: nn.Module, groups: Sequence[ChannelGroup]) -> None:
        self.groups = groups
        self.first = [1]
        for group in groups:
            self.first.append(self.first[-1] + group.channels)
        self.outputs: dict[str, Tensor] = {}
        self.inputs: dict[str, Tensor] = {}
        for group, first in zip(groups, self.first, strict=False):
            numbers = torch.arange(first, first + group.channels)[:, None]
            for member in group.members:
                module = model.get_submodule(member.layer)
                side, size = (
                    (self.outputs, outputs_of(module))
                    if member.role == "producer"
                    else (self.inputs, inputs_of(module))
                )
                layer = side.setdefault(member.layer, torch.zeros(size, dtype=torch.int64))
                layer[member.index] = numbers

    def __iter__(self) -> Iterator[tuple[ChannelGroup, int]]:
        """Each group with the number of its first channel."""
        return zip(self.groups, self.first, strict=False)

    def without(self, removed: Sequence[Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Outputs and inputs after the removal of some channels of each group: the others close ranks."""
        gone = torch.cat([first + index for (_, first), index in zip(self, removed, strict=True)] or [torch.empty(0)])
        outputs, inputs = (
            {layer: numbers[~torch.isin(numbers, gone)] for layer, numbers in side.items()}
            for side in (self.outputs, self.inputs)
        )
        return outputs, inputs


def outputs_of(module: nn.Module) -> int:
    """Output channels (features) of a layer that has a role."""
    return _channels(module)[1]


def inputs_of(module: nn.Module) -> int:
    """Input channels (features) of a layer that has a role."""
    return _channels(module)[0]


def _channels(module: nn.Module) -> tuple[int, int]:
    channels = channels_of(module)
    assert channels is not None, f"a {type(module).__name__} has no role"
    return channels
