"""What the methods need to know of a network beside its weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn

from hybridprune.config import CurvatureOptions
from hybridprune.curvature import (
    LayerFactors,
    SecondMoments,
    collect_factors,
    collect_second_moments,
    eigenbasis,
)
from hybridprune.engine.modes import kept_modes
from hybridprune.pruning.subject import Subject


def measure_factors(
    subject: Subject, layers: Mapping[str, nn.Module], options: CurvatureOptions
) -> dict[str, LayerFactors]:
    """The layers' curvature; the network is in eval mode and routes the images as it does in inference.

    So a block that few images use collects little. With several processes each takes the batches of its shard.
    """
    with kept_modes(subject.model):
        subject.model.eval()
        return collect_factors(
            subject.logits,
            layers,
            subject.sample(options.curvature_images, "factors"),
            fisher_type=options.fisher_type,
            moving_average=options.ma,
            seed=subject.seed,
            sua=options.sua,
            use_full_cov_a=options.use_full_cov_a,
            shard=subject.shard,
            likelihood=subject.likelihood,
        )


def measure_moments(
    subject: Subject,
    layers: Mapping[str, nn.Module],
    factors: Mapping[str, LayerFactors],
    means: Mapping[str, Tensor] | None,
    needed: Literal["trace", "entries"] | None,
    options: CurvatureOptions,
) -> dict[str, SecondMoments]:
    """The layers' exact second moments: their traces alone, or entry by entry in the eigenbases of the factors.

    ``means`` ``[C_in]`` are subtracted from the layers' inputs.
    """
    if needed is None:
        return {}
    bases: dict[str, tuple[Tensor, Tensor, Tensor | None]] | None = None
    if needed == "entries":
        bases = {}
        for name, layer in factors.items():
            basis = eigenbasis(layer.input_factor, layer.gradient_factor, layer.offset_factor)
            bases[name] = basis.q_out, basis.q_in, basis.q_offset
    with kept_modes(subject.model):
        subject.model.eval()
        return collect_second_moments(
            subject.logits,
            layers,
            subject.sample(options.moment_images, "moments"),
            bases=bases,
            fisher_type=options.fisher_type,
            seed=subject.seed + 1,
            means=means,
            shard=subject.shard,
            likelihood=subject.likelihood,
        )
