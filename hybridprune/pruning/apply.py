"""Surgery: give a network the forms of a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from hybridprune.models.factored import FactoredConv2d, FactorEdit, fill, replace_module
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.pruning.decompose import Decomposition, Factors
from hybridprune.pruning.forms import DENSE
from hybridprune.pruning.layers import PrunableLayer
from hybridprune.pruning.plan import LayerPlan


@torch.no_grad()
def apply_plan(
    net: GatedNetwork,
    layers: Sequence[PrunableLayer],
    decompositions: Mapping[str, Decomposition],
    plan: Sequence[LayerPlan],
) -> tuple[FactorEdit, ...]:
    """Replace the planned layers of ``net`` in place; returns all edits by which it differs from the unpruned one.

    Layers whose form does not change are left as they are, to the bit.
    """
    edits = []
    for layer, planned in zip(layers, plan, strict=True):
        assert layer.name == planned.name
        if planned.ranks != layer.form:
            replace_module(net, layer.name, _rebuilt(layer, decompositions[layer.name], planned))
        if planned.ranks != DENSE:
            edits.append(FactorEdit(layer.name, planned.ranks.rank_in, planned.ranks.rank_out))
    return tuple(edits)


def _rebuilt(layer: PrunableLayer, decomposition: Decomposition, planned: LayerPlan) -> nn.Module:
    rank_in, rank_out = planned.ranks
    # A side that ends without a rotation loses nothing: all of its directions are kept.
    factors = decomposition.truncate(
        layer.conv.out_channels if rank_out is None else rank_out,
        layer.conv.in_channels if rank_in is None else rank_in,
    )
    merged = merge(layer, factors)
    outline = _outline(layer)
    core = merged.core
    if rank_in is None:
        core = torch.einsum("rskl,si->rikl", core, merged.rotate_in)
    if rank_out is None:
        core = torch.einsum("or,rikl->oikl", merged.rotate_out, core)
    if planned.ranks == DENSE:
        outline.weight.copy_(core)
        if layer.bias is not None and outline.bias is not None:
            outline.bias.copy_(layer.bias)
        return outline
    module = FactoredConv2d(outline, rank_in, rank_out)
    rotate_out = None if rank_out is None else merged.rotate_out
    fill(module, rotate_out, core, None if rank_in is None else merged.rotate_in)
    if layer.bias is not None:
        last = module.core if rank_out is None else module.rotate_out
        assert isinstance(last.bias, Tensor)
        last.bias.copy_(layer.bias)
    return module.to(memory_format=_memory_format(layer.conv.weight))  # type: ignore[call-overload]


def merge(layer: PrunableLayer, factors: Factors) -> Factors:
    """The factors of ``layer.conv`` joined with the rotations that the layer has already: those of the whole layer."""
    rotate_in, rotate_out = factors.rotate_in, factors.rotate_out
    if layer.rotate_in is not None:
        rotate_in = rotate_in @ layer.rotate_in.to(rotate_in)
    if layer.rotate_out is not None:
        rotate_out = layer.rotate_out.to(rotate_out) @ rotate_out
    return Factors(rotate_out, factors.core, rotate_in)


def _outline(layer: PrunableLayer) -> nn.Conv2d:
    """A dense convolution of the whole layer's geometry."""
    conv = layer.conv
    return nn.Conv2d(
        layer.shape.in_channels,
        layer.shape.out_channels,
        (int(conv.kernel_size[0]), int(conv.kernel_size[1])),
        stride=layer.stride,
        padding=conv.padding,  # type: ignore[arg-type]
        dilation=(int(conv.dilation[0]), int(conv.dilation[1])),
        bias=layer.bias is not None,
        padding_mode=conv.padding_mode,
        device=conv.weight.device,
        dtype=conv.weight.dtype,
    )


def _memory_format(weight: Tensor) -> torch.memory_format:
    channels_last = weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    return torch.channels_last if channels_last else torch.contiguous_format
