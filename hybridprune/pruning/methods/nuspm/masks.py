"""Binary masks over channel groups that are learnt with the weights, in the place of the channels' removal."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hybridprune.pruning.channels.group import ChannelGroup, inputs_of

INITIAL = 0.6
THRESHOLD = 0.5
CHILD = "channel_mask"


class ChannelMask(nn.Module):
    """One mask for all members of a group: of a channel, 1 if its scalar is above 0.5, else 0.

    The gradient goes to the scalars as it comes to the mask (a straight-through estimator).
    """

    def __init__(self, like: Tensor, channels: int) -> None:
        """All channels are kept at first; device and type are those of ``like``."""
        super().__init__()
        self.scalars = nn.Parameter(torch.full((channels,), INITIAL, device=like.device, dtype=like.dtype))

    @property
    def kept(self) -> Tensor:
        """``[channels]``, bool: which channels are kept."""
        return self.scalars.detach() > THRESHOLD

    def forward(self) -> Tensor:
        """``[channels]`` in {0, 1}, exactly."""
        return self.kept.to(self.scalars.dtype) + (self.scalars - self.scalars.detach())


class _Reading(nn.Module):
    """The weight ``[C_out, C_in, ...]`` of a layer that reads masked channels: 0 where the channel is masked."""

    source: Tensor

    def __init__(self, inputs: int, parts: Sequence[tuple[ChannelMask, Tensor]]) -> None:
        """``parts``: masks, and the inputs ``[channels, m]`` of the layer that go with each of their channels."""
        super().__init__()
        # In a tuple: the masks are parameters of another layer.
        self._masks = tuple(mask for mask, _ in parts)
        start = 0
        source = torch.full((inputs,), sum(len(mask.scalars) for mask in self._masks))
        for mask, index in parts:
            source[index] = torch.arange(start, start + len(index))[:, None]
            start += len(mask.scalars)
        self.register_buffer("source", source.to(self._masks[0].scalars.device), persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        masks = [mask() for mask in self._masks]
        # The last one is of the inputs that have no mask.
        scale = torch.cat([*masks, masks[0].new_ones(1)])[self.source]
        return weight * scale.to(weight.dtype).view(1, -1, *(1,) * (weight.ndim - 2))


def attach_masks(model: nn.Module, groups: Sequence[ChannelGroup]) -> dict[str, ChannelMask]:
    """Give each group a mask, in place; returns them by the group's name, whose layer owns the parameters.

    A mask acts where the group's channels are read, behind all BatchNorms, activations and residual sums: the weights
    of a masked channel count as 0 there. That is what a mask behind BatchNorm and ReLU computes (as every block of a
    residual stage has the same one), in any network, also without BatchNorm. Its gradient is the product of the
    activations that are read and their gradients, summed over the readers; none gets to a masked channel's filters.
    """
    masks: dict[str, ChannelMask] = {}
    readers: dict[str, list[tuple[ChannelMask, Tensor]]] = {}
    for group in groups:
        layer = model.get_submodule(group.name)
        assert group.name not in masks, group.name
        mask = masks[group.name] = ChannelMask(unmasked_weight(layer), group.channels)
        layer.add_module(CHILD, mask)
        for member in group.of("consumer"):
            readers.setdefault(member.layer, []).append((mask, member.index))
    for name, parts in readers.items():
        layer = model.get_submodule(name)
        # Unsafe: shape and type are known not to change.
        parametrize.register_parametrization(layer, "weight", _Reading(inputs_of(layer), parts), unsafe=True)
    return masks


def unmasked_weight(layer: nn.Module) -> Tensor:
    """The weight of a layer whatever it reads; that of a plain layer is its weight."""
    masked = parametrize.is_parametrized(layer, "weight")
    return layer.get_parameter("parametrizations.weight.original" if masked else "weight")


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
    for name in attached_masks(model):
        del model.get_submodule(name)._modules[CHILD]


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
