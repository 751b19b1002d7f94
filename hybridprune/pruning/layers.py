"""The prunable convolutions of a network, factored or not, in the coordinates of their cores."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hybridprune.models.factored import FactoredConv2d
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.pruning.forms import ConvShape, Ranks


@dataclass(frozen=True)
class PrunableLayer:
    """A convolution of the backbone. ``conv`` is the convolution itself or the core of its factored form."""

    name: str
    conv: nn.Conv2d
    shape: ConvShape
    form: Ranks
    """The form it has now."""
    rotate_in: Tensor | None
    """``[r_in, C_in]`` in front of ``conv``, or None"""
    rotate_out: Tensor | None
    """``[C_out, r_out]`` behind ``conv``, or None"""
    bias: Tensor | None
    stride: tuple[int, int]
    """Of the whole layer."""

    @property
    def directions(self) -> Ranks:
        """Input and output channels of ``conv``: what can still be cut."""
        return Ranks(self.conv.in_channels, self.conv.out_channels)


def prunable_layers(net: GatedNetwork, input_size: int) -> list[PrunableLayer]:
    """All convolutions of the backbone in forward order; gates and classifier are not pruned."""
    convs: dict[str, nn.Conv2d | FactoredConv2d] = {}
    for name, module in net.named_modules():
        if isinstance(module, FactoredConv2d) or (
            isinstance(module, nn.Conv2d) and not isinstance(net.get_submodule(name.rpartition(".")[0]), FactoredConv2d)
        ):
            convs[name] = module
    sizes = _map_sizes(net, list(convs), input_size)
    return [_layer(name, module, *sizes[name]) for name, module in convs.items() if name.startswith("backbone.")]


def _layer(name: str, module: nn.Conv2d | FactoredConv2d, in_positions: int, out_positions: int) -> PrunableLayer:
    if isinstance(module, nn.Conv2d):
        conv, rotate_in, rotate_out, bias = module, None, None, module.bias
        subsample = (1, 1)
    else:
        subsample = module.subsample
        conv, rotate_in, rotate_out = module.core, _matrix(module.rotate_in), _matrix(module.rotate_out)
        bias = module.rotate_out.bias if isinstance(module.rotate_out, nn.Conv2d) else module.core.bias
    area = conv.weight[0, 0].numel()
    shape = ConvShape(
        in_channels=conv.in_channels if rotate_in is None else rotate_in.shape[1],
        out_channels=conv.out_channels if rotate_out is None else rotate_out.shape[0],
        kernel_area=area,
        in_positions=out_positions if area == 1 else in_positions,
        out_positions=out_positions,
        bias=bias is not None,
    )
    form = Ranks(None if rotate_in is None else conv.in_channels, None if rotate_out is None else conv.out_channels)
    stride = (int(conv.stride[0]) * subsample[0], int(conv.stride[1]) * subsample[1])
    return PrunableLayer(name, conv, shape, form, rotate_in, rotate_out, bias, stride)


def _matrix(rotation: nn.Module) -> Tensor | None:
    return rotation.weight.detach().flatten(1) if isinstance(rotation, nn.Conv2d) else None


@torch.no_grad()
def _map_sizes(net: GatedNetwork, names: list[str], input_size: int) -> dict[str, tuple[int, int]]:
    """Input and output positions of the named layers for one image, found on the meta device."""
    meta = copy.deepcopy(net).to("meta").eval()
    sizes: dict[str, tuple[int, int]] = {}

    def recorder(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def record(module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
            sizes[name] = (args[0].shape[2] * args[0].shape[3], y.shape[2] * y.shape[3])

        return record

    for name in names:
        meta.get_submodule(name).register_forward_hook(recorder(name))
    meta(torch.empty(1, 3, input_size, input_size, device="meta"))
    return sizes
