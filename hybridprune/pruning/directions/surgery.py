"""Surgery: give a network's layers the forms and ranks of a plan."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hybridprune.models.factored import Ranks, blank
from hybridprune.models.factored_weights import build_layer
from hybridprune.models.replace import inherit, replace_module
from hybridprune.pruning.directions.decomposition import Decomposition, Factors
from hybridprune.pruning.directions.layers import PrunableLayer


@torch.no_grad()
def apply_ranks(
    model: nn.Module,
    layers: Sequence[PrunableLayer],
    decompositions: Mapping[str, Decomposition],
    ranks: Mapping[str, Ranks],
    sweeps: int = 0,
) -> None:
    """Give every layer of ``model`` its ranks, in place; ``sweeps`` as in ``Decomposition.truncate``.

    Layers whose form does not change are left as they are, to the bit.
    """
    for layer in layers:
        if ranks[layer.name] != layer.form:
            rebuilt = _rebuilt(layer, decompositions[layer.name], ranks[layer.name], sweeps)
            old = model.get_submodule(layer.name)
            replace_module(model, layer.name, inherit(rebuilt, old, blank(old)))


@torch.no_grad()
def sketch_ranks(model: nn.Module, layers: Sequence[PrunableLayer], ranks: Mapping[str, Ranks]) -> None:
    """Give every layer of ``model`` the form of its ranks in place, with random weights; others are left as they are.

    Outputs are about as large as before, so that the network computes numbers of an ordinary size.
    """
    draw = torch.Generator().manual_seed(0)
    for layer in layers:
        if ranks[layer.name] != layer.form:
            factors = _random_factors(layer, ranks[layer.name], draw)
            built = build_layer(outline_of(layer), ranks[layer.name], factors, layer.bias)
            old = model.get_submodule(layer.name)
            replace_module(model, layer.name, inherit(built, old, blank(old)))


def _random_factors(
    layer: PrunableLayer, ranks: Ranks, draw: torch.Generator
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """Normal factors that keep the variance of what they read, but the core, which has the gain of ``layer.leaf``."""
    weight, shape = layer.weight, layer.shape
    rank_in = shape.in_channels if ranks.rank_in is None else ranks.rank_in
    rank_out = shape.out_channels if ranks.rank_out is None else ranks.rank_out

    def normal(*sizes: int) -> Tensor:
        fan_in = math.prod(sizes[1:])
        return (torch.randn(sizes, generator=draw, dtype=torch.float32) / fan_in**0.5).to(weight)

    gain = weight.norm() / weight.shape[0] ** 0.5
    core = gain * normal(rank_out, 1 if ranks.separable else rank_in, *weight.shape[2:])
    rotate_in = None if ranks.rank_in is None else normal(rank_in, shape.in_channels)
    return None if ranks.rank_out is None else normal(shape.out_channels, rank_out), core, rotate_in


def _rebuilt(layer: PrunableLayer, decomposition: Decomposition, ranks: Ranks, sweeps: int) -> nn.Module:
    rank_in, rank_out, _ = ranks
    if ranks.separable:
        assert rank_in is not None
        merged = merge(layer, decomposition.separate(rank_in))
        return build_layer(outline_of(layer), ranks, (merged.rotate_out, merged.core, merged.rotate_in), layer.bias)
    full_in, full_out = layer.directions
    # A side that ends without a rotation loses nothing: all of its directions are kept.
    factors = decomposition.truncate(
        full_out if rank_out is None else rank_out, full_in if rank_in is None else rank_in, sweeps
    )
    merged = merge(layer, factors)
    return build_layer(outline_of(layer), ranks, (merged.rotate_out, merged.core, merged.rotate_in), layer.bias)


def merge(layer: PrunableLayer, factors: Factors) -> Factors:
    """The factors of ``layer.leaf`` joined with the rotations that the layer has already: those of the whole layer."""
    rotate_in, rotate_out = factors.rotate_in, factors.rotate_out
    if layer.rotate_in is not None:
        rotate_in = rotate_in @ layer.rotate_in.to(rotate_in)
    if layer.rotate_out is not None:
        rotate_out = layer.rotate_out.to(rotate_out) @ rotate_out
    return Factors(rotate_out, factors.core, rotate_in, factors.separable)


def outline_of(layer: PrunableLayer) -> nn.Conv2d | nn.Linear:
    """A dense layer of the whole layer's geometry, on the meta device: making it draws no random numbers."""
    leaf, shape = layer.leaf, layer.shape
    options: dict[str, Any] = {"bias": layer.bias is not None, "device": "meta", "dtype": leaf.weight.dtype}
    if isinstance(leaf, nn.Linear):
        return nn.Linear(shape.in_channels, shape.out_channels, **options)
    return nn.Conv2d(
        shape.in_channels,
        shape.out_channels,
        (int(leaf.kernel_size[0]), int(leaf.kernel_size[1])),
        stride=layer.stride,
        padding=leaf.padding,  # type: ignore[arg-type]
        dilation=(int(leaf.dilation[0]), int(leaf.dilation[1])),
        padding_mode=leaf.padding_mode,
        **options,
    )
