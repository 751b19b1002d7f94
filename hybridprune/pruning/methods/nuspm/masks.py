"""Binary masks over channel groups that are learnt with the weights, in the place of the channels' removal."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hybridprune.pruning.channels.group import ChannelGroup
from hybridprune.pruning.sparse_training.masked_reading import CHILD, Mask, attach

INITIAL = 0.6
THRESHOLD = 0.5


class ChannelMask(Mask):
    """One mask for all members of a group: of a channel, 1 if its scalar is above 0.5, else 0.

    The gradient goes to the scalars as it comes to the mask (a straight-through estimator).
    """

    def __init__(self, like: Tensor, channels: int) -> None:
        """All channels are kept at first; device and type are those of ``like``."""
        super().__init__()
        self.channels = channels
        self.scalars = nn.Parameter(torch.full((channels,), INITIAL, device=like.device, dtype=like.dtype))

    @property
    def kept(self) -> Tensor:
        """``[channels]``, bool: which channels are kept."""
        return self.scalars.detach() > THRESHOLD

    def forward(self) -> Tensor:
        """``[channels]`` in {0, 1}, exactly."""
        return self.kept.to(self.scalars.dtype) + (self.scalars - self.scalars.detach())


def attach_masks(model: nn.Module, groups: Sequence[ChannelGroup]) -> dict[str, ChannelMask]:
    """Give each group a mask that keeps all channels at first, in place; see `attach`."""
    return attach(model, groups, lambda weight, group: ChannelMask(weight, group.channels))


def attached_masks(model: nn.Module) -> dict[str, ChannelMask]:
    """The masks that ``attach_masks`` gave a network, by the name of their group."""
    return {
        name.removesuffix(f".{CHILD}"): module
        for name, module in model.named_modules()
        if isinstance(module, ChannelMask)
    }


def mask_parameters(model: nn.Module) -> list[str]:
    """The names of the masks' scalars among the parameters of ``model``."""
    return [f"{name}.{CHILD}.scalars" for name in attached_masks(model)]


def unread(model: nn.Module, group: ChannelGroup) -> Tensor:
    """``[channels]``, bool, on the CPU: of which channels of a group all weights that read them are 0."""
    read = torch.zeros(group.channels, dtype=torch.bool)
    for member in group.of("consumer"):
        weight = model.get_submodule(member.layer).get_parameter("weight").detach()
        inputs = (weight != 0).transpose(0, 1).flatten(1).any(1).cpu()
        read |= inputs[member.index].any(1)
    return ~read


def unread_channels(model: nn.Module, group: ChannelGroup) -> list[int]:
    """The unread channels of a group, ascending; without the first one if all are, since no layer can have none."""
    gone = unread(model, group)
    return gone.nonzero().flatten()[int(gone.all()) :].tolist()
