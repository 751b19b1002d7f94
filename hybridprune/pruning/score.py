"""From a network and images to the decompositions of its layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from hybridprune.config import CurvatureOptions
from hybridprune.curvature import LayerFactors, SecondMoments, collect_factors, collect_second_moments, eigenbasis
from hybridprune.data import Batch
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.pruning.decompose import METHODS, Decomposition
from hybridprune.pruning.layers import PrunableLayer

Sample = Callable[[int, str], Iterable[Batch]]
"""``sample(images, purpose)`` gives batches of about that many random training images."""


def decompose_layers(
    net: GatedNetwork,
    layers: Sequence[PrunableLayer],
    method: str,
    options: CurvatureOptions,
    sample: Sample,
    generator: torch.Generator,
) -> dict[str, Decomposition]:
    """Curvature on the gated network (eval mode, decisions held constant), then the method's decomposition per layer.

    The gates route the images as they do in inference: a block that few images use collects little curvature.
    """
    net.eval()
    convs = {layer.name: layer.conv for layer in layers}
    factors = collect_factors(
        lambda images: net(images, mode="executed").logits,
        convs,
        _pairs(sample(options.curvature_images, "factors")),
        fisher_type=options.fisher_type,
        moving_average=options.ma,
        generator=generator,
    )
    moments = _moments(net, convs, factors, method, options, sample, generator)
    return {
        name: METHODS[method](conv.weight.detach(), factors[name], moments.get(name), options.regularization)
        for name, conv in convs.items()
    }


def _moments(
    net: GatedNetwork,
    convs: dict[str, torch.nn.Conv2d],
    factors: dict[str, LayerFactors],
    method: str,
    options: CurvatureOptions,
    sample: Sample,
    generator: torch.Generator,
) -> dict[str, SecondMoments]:
    """Exact second moments, where the method uses them: traces alone, or entry by entry in the eigenbasis."""
    bases: dict[str, tuple[Tensor, Tensor]] | None = None
    if method == "eigendamage":
        if not options.correct_eigenvalues:
            return {}
        bases = {}
        for name, layer in factors.items():
            basis = eigenbasis(layer.input_factor, layer.gradient_factor)
            bases[name] = (basis.q_out.float(), basis.q_in.float())
    return collect_second_moments(
        lambda images: net(images, mode="executed").logits,
        convs,
        _pairs(sample(options.moment_images, "moments")),
        bases=bases,
        fisher_type=options.fisher_type,
        generator=generator,
    )


def _pairs(batches: Iterable[Batch]) -> Iterable[tuple[Tensor, Tensor]]:
    return ((batch.images, batch.labels) for batch in batches)
