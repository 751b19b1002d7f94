"""What the tests of pruning share: random curvature, and cuts of real networks with random scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hybridprune.curvature import LayerFactors, SecondMoments
from hybridprune.measure.cost import count
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.pruning.decompose import METHODS, Decomposition
from hybridprune.pruning.layers import PrunableLayer
from hybridprune.pruning.plan import Candidate, Cut

SIZE = 8


def source(seed: int) -> torch.Generator:
    """A generator of this seed."""
    return torch.Generator().manual_seed(seed)


def random_factor(size: int, rank: int, seed: int) -> Tensor:
    """A random positive semi-definite matrix ``[size, size]`` of the given rank, in double precision."""
    root = torch.randn(size, rank, generator=source(seed), dtype=torch.float64)
    return root @ root.T


def random_curvature(weight: Tensor, seed: int) -> tuple[LayerFactors, SecondMoments]:
    """Well-conditioned factors of a layer, and a trace and entries that do not follow from them."""
    c_out, c_in = weight.shape[:2]
    factors = LayerFactors(random_factor(c_in, c_in + 3, seed), random_factor(c_out, c_out + 3, seed + 1), 5)
    entries = torch.rand(weight.shape, generator=source(seed + 2), dtype=torch.float64)
    return factors, SecondMoments(float(entries.sum()), entries)


def random_decompositions(
    layers: Sequence[PrunableLayer], method: str = "fisher-tucker", damping: float = 1e-2, seed: int = 0
) -> dict[str, Decomposition]:
    """Decompositions of the layers as they are now, by random curvature."""
    return {
        layer.name: METHODS[method](
            layer.conv.weight.detach(), *random_curvature(layer.conv.weight, seed + 10 * number), damping
        )
        for number, layer in enumerate(layers)
    }


def random_scores(layers: Sequence[PrunableLayer], seed: int = 0) -> dict[str, tuple[Tensor, Tensor]]:
    """Random descending scores of the input and the output directions of each layer."""
    draw = source(seed)
    return {
        layer.name: tuple(  # type: ignore[misc]
            torch.rand(side, generator=draw, dtype=torch.float64).sort(descending=True).values
            for side in (layer.conv.in_channels, layer.conv.out_channels)
        )
        for layer in layers
    }


def cut_of(
    net: GatedNetwork,
    layers: Sequence[PrunableLayer],
    scores: Mapping[str, tuple[Tensor, Tensor]],
    size: int = SIZE,
    **options: Any,
) -> Cut:
    """The cut of a network's layers with these scores; options as in ``Cut``."""
    cost = count(net, size)
    return Cut(
        candidates=[Candidate(layer.name, layer.shape, layer.form, *scores[layer.name]) for layer in layers],
        other_macs=cost.backbone_macs - sum(layer.shape.macs(layer.form) for layer in layers),
        other_params=cost.backbone_params - sum(layer.shape.params(layer.form) for layer in layers),
        **{"limit": 0.9, "normalize": False, "allow_increase": False, **options},
    )
