"""What the methods need to know of a network beside its weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn

from hybridprune.config import CurvatureOptions
from hybridprune.curvature import (
    LayerFactors,
    Rows,
    SecondMoments,
    collect_factors,
    collect_second_moments,
    eigenbasis,
    rows_of_images,
)
from hybridprune.engine.modes import kept_modes
from hybridprune.pruning.subject import Subject

WIDEST = 10_000
"""Inputs or outputs of the widest layer whose factors are computed: an eigenbasis takes about 36 times its square in
bytes, and its cube in time."""


def measure_factors(
    subject: Subject, layers: Mapping[str, nn.Module], options: CurvatureOptions
) -> dict[str, LayerFactors]:
    """The layers' curvature; the network is in eval mode and routes the images as it does in inference.

    So a block that few images use collects little. With several processes each takes the batches of its shard. A layer
    that is wider than `WIDEST`, or whose activations have no rows of single images (`rows_of_images`), has none.
    """
    with kept_modes(subject.model):
        subject.model.eval()
        rows = _rows(subject, {name: layer for name, layer in layers.items() if width(layer) <= WIDEST})
        if not rows:
            return {}
        return collect_factors(
            subject.logits,
            {name: layers[name] for name in rows},
            subject.sample(options.curvature_images, "factors"),
            fisher_type=options.fisher_type,
            moving_average=options.ma,
            seed=subject.seed,
            sua=options.sua,
            use_full_cov_a=options.use_full_cov_a,
            shard=subject.shard,
            likelihood=subject.likelihood,
            rows=rows,
        )


def width(layer: nn.Module) -> int:
    """Inputs or outputs of a convolution or linear layer, whichever are more."""
    return max(layer.get_parameter("weight").shape[:2])


def measure_moments(
    subject: Subject,
    layers: Mapping[str, nn.Module],
    factors: Mapping[str, LayerFactors],
    means: Mapping[str, Tensor] | None,
    needed: Literal["trace", "entries"] | None,
    options: CurvatureOptions,
) -> dict[str, SecondMoments]:
    """The layers' exact second moments: their traces alone, or entry by entry in the eigenbases of the factors.

    Of the layers that have factors. ``means`` ``[C_in]`` are subtracted from the layers' inputs.
    """
    layers = {name: layer for name, layer in layers.items() if name in factors}
    if needed is None or not layers:
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
            rows=_rows(subject, layers),
        )


def _rows(subject: Subject, layers: Mapping[str, nn.Module]) -> dict[str, Rows]:
    return rows_of_images(lambda images: subject.run(subject.model, images), subject.example, layers)
