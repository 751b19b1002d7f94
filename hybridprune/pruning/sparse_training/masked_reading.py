"""Masks over channel groups, in the place of the channels' removal: they act on the weights that read the channels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hybridprune.pruning.channels.group import ChannelGroup, inputs_of

CHILD = "channel_mask"


class Mask(nn.Module, ABC):
    """One mask for all members of a group."""

    channels: int

    @abstractmethod
    def forward(self) -> Tensor:
        """``[channels]`` in {0, 1}, exactly."""


K = TypeVar("K", bound=Mask)


class _Reading(nn.Module):
    """The weight ``[C_out, C_in, ...]`` of a layer that reads masked channels: 0 where the channel is masked."""

    source: Tensor

    def __init__(self, like: Tensor, inputs: int, parts: Sequence[tuple[Mask, Tensor]]) -> None:
        """``parts``: masks, and the inputs ``[channels, m]`` of the layer that go with each of their channels."""
        super().__init__()
        # In a tuple: the masks belong to another layer.
        self._masks = tuple(mask for mask, _ in parts)
        start = 0
        source = torch.full((inputs,), sum(mask.channels for mask in self._masks))
        for mask, index in parts:
            source[index] = torch.arange(start, start + len(index))[:, None]
            start += mask.channels
        self.register_buffer("source", source.to(like.device), persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        masks = [mask() for mask in self._masks]
        # The last one is of the inputs that have no mask.
        scale = torch.cat([*masks, masks[0].new_ones(1)])[self.source]
        return weight * scale.to(weight.dtype).view(1, -1, *(1,) * (weight.ndim - 2))


def attach(model: nn.Module, groups: Sequence[ChannelGroup], make: Callable[[Tensor, ChannelGroup], K]) -> dict[str, K]:
    """Give each group a mask, in place; returns them by the group's name, whose layer owns what they have.

    ``make`` gives the mask of a group from the weight of that layer, whose device and type are the mask's. A mask acts
    where the group's channels are read, behind all BatchNorms, activations and residual sums: the weights of a masked
    channel count as 0 there. That is what a mask behind BatchNorm and ReLU computes (as every block of a residual
    stage has the same one), in any network, also without BatchNorm. Its gradient is the product of the activations
    that are read and their gradients, summed over the readers; none gets to a masked channel's filters.
    """
    masks: dict[str, K] = {}
    readers: dict[str, list[tuple[Mask, Tensor]]] = {}
    for group in groups:
        layer = model.get_submodule(group.name)
        assert group.name not in masks, group.name
        mask = masks[group.name] = make(unmasked_weight(layer), group)
        assert mask.channels == group.channels, group.name
        layer.add_module(CHILD, mask)
        for member in group.of("consumer"):
            readers.setdefault(member.layer, []).append((mask, member.index))
    for name, parts in readers.items():
        layer = model.get_submodule(name)
        reading = _Reading(unmasked_weight(layer), inputs_of(layer), parts)
        # Unsafe: shape and type are known not to change.
        parametrize.register_parametrization(layer, "weight", reading, unsafe=True)
    return masks


def unmasked_weight(layer: nn.Module) -> Tensor:
    """The weight of a layer whatever it reads; that of a plain layer is its weight."""
    masked = parametrize.is_parametrized(layer, "weight")
    return layer.get_parameter("parametrizations.weight.original" if masked else "weight")


@torch.no_grad()
def fold_masks(model: nn.Module) -> None:
    """Make the masks a part of the weights and the layers plain again, in place; the function stays the same, exactly.

    All that a layer reads of a masked channel is 0 then.
    """
    for module in list(model.modules()):
        if not parametrize.is_parametrized(module, "weight"):
            continue
        # Not by remove_parametrizations: it changes the class, which copies of the layer share.
        plain, weight = parametrize.type_before_parametrizations(module), unmasked_weight(module)
        assert isinstance(weight, nn.Parameter) and isinstance(module.weight, Tensor)
        weight.copy_(module.weight)
        del module.parametrizations
        module.__class__ = plain
        # First again: optimisers know parameters by their order.
        others = dict(module.named_parameters(recurse=False))
        for name in others:
            delattr(module, name)
        for name, parameter in {"weight": weight, **others}.items():
            module.register_parameter(name, parameter)
    for module in model.modules():
        module._modules.pop(CHILD, None)
