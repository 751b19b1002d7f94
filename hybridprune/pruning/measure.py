"""Measurements of a network that methods need beside its weights: curvature, moments, images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from hybridprune.config import CurvatureOptions
from hybridprune.curvature import (
    LayerFactors,
    Rows,
    SecondMoments,
    Unobservable,
    collect_factors,
    collect_second_moments,
    eigenbasis,
    rows_of_images,
)
from hybridprune.curvature.geometry import geometry_of
from hybridprune.engine.modes import kept_modes
from hybridprune.errors import UserError
from hybridprune.pruning.left_alone import NO_ROWS, PADDED, UNSEEN, WIDE
from hybridprune.pruning.prunable import PrunableNetwork

T = TypeVar("T")

WIDEST = 10_000
"""Inputs or outputs of the widest layer whose factors are computed: an eigenbasis takes about 36 times its square in
bytes, and its cube in time."""


def measure_factors(
    network: PrunableNetwork, layers: Mapping[str, nn.Module], options: CurvatureOptions, traced: bool = False
) -> tuple[dict[str, LayerFactors], dict[str, str]]:
    """The layers' curvature, and of those that have none the reason.

    K is from the first ``moment_images`` of the images. If it is ``traced``, so are exact traces of the second moments.
    The network is in eval mode and routes the images as it does in inference, so a block that few images use collects
    little. Several processes take the batches in turn, if the network's are ``shared``. A layer that is wider than
    `WIDEST`, whose activations have no rows of single images (`rows_of_images`), or that is `Unobservable`, has none.
    """
    with kept_modes(network.model):
        network.model.eval()
        missing = {name: reason for name, layer in layers.items() if (reason := _obstacle(layer)) is not None}
        rows = rows_in(network, {name: layer for name, layer in layers.items() if name not in missing})
        found, unseen = _of_observable(
            lambda seen: collect_factors(
                network.logits,
                seen,
                network.sample(options.curvature_images, "factors"),
                fisher_type=options.fisher_type,
                moving_average=options.ma,
                seed=network.seed,
                sua=options.sua,
                use_full_cov_a=options.use_full_cov_a,
                shared=network.shared,
                likelihood=network.likelihood,
                rows=rows,
                offset_images=options.moment_images,
                traced_images=options.moment_images if traced else 0,
            ),
            {name: layers[name] for name in rows},
        )
    no_rows = dict.fromkeys((name for name in layers if name not in found), NO_ROWS)
    return found, {**no_rows, **missing, **unseen}


def _obstacle(layer: nn.Module) -> str | None:
    """Why a layer has no factors, whatever it reads; None if it may have some."""
    try:
        geometry_of(layer)
    except ValueError:
        return PADDED
    return WIDE if max(layer.get_parameter("weight").shape[:2]) > WIDEST else None


def exact_traces(factors: Mapping[str, LayerFactors]) -> dict[str, SecondMoments]:
    """The traces of the layers' exact second moments that were measured with their factors."""
    return {name: SecondMoments(layer.trace.value, None) for name, layer in factors.items() if layer.trace is not None}


def measure_moments(
    network: PrunableNetwork,
    layers: Mapping[str, nn.Module],
    factors: Mapping[str, LayerFactors],
    means: Mapping[str, Tensor] | None,
    options: CurvatureOptions,
) -> tuple[dict[str, SecondMoments], dict[str, str]]:
    """The exact second moments of the layers that have factors, entry by entry in the factors' eigenbases.

    And why others of these layers have none. ``means`` ``[C_in]`` are subtracted from the layers' inputs.
    """
    layers = {name: layer for name, layer in layers.items() if name in factors}
    if not layers:
        return {}, {}
    bases: dict[str, tuple[Tensor, Tensor, Tensor | None]] = {}
    for name, layer in factors.items():
        basis = eigenbasis(layer.input_factor, layer.gradient_factor, layer.offset_factor)
        bases[name] = basis.q_out, basis.q_in, basis.q_offset
    with kept_modes(network.model):
        network.model.eval()
        rows = rows_in(network, layers)
        return _of_observable(
            lambda seen: collect_second_moments(
                network.logits,
                seen,
                network.sample(options.moment_images, "moments"),
                bases=bases,
                fisher_type=options.fisher_type,
                seed=network.seed + 1,
                means=means,
                shared=network.shared,
                likelihood=network.likelihood,
                rows=rows,
            ),
            layers,
        )


def _of_observable(
    collect: Callable[[Mapping[str, nn.Module]], dict[str, T]], layers: Mapping[str, nn.Module]
) -> tuple[dict[str, T], dict[str, str]]:
    """What can be collected of the layers without those that turn out to be unobservable, and these."""
    unseen: dict[str, str] = {}
    while len(unseen) < len(layers):
        try:
            with differentiable():
                return collect({name: layer for name, layer in layers.items() if name not in unseen}), unseen
        except Unobservable as error:
            unseen |= {name: UNSEEN for name, layer in layers.items() if layer is error.layer}
    return {}, unseen


def once(network: PrunableNetwork, kind: str, measure: Callable[[], T]) -> T:
    """Give what ``measure`` gives, or has given for another plan of the same network, where that is kept."""
    kept = network.measurements
    if kept is None:
        return measure()
    if kind not in kept:
        kept[kind] = measure()
    return kept[kind]


@contextmanager
def differentiable() -> Iterator[None]:
    """UserError if the network's gradient, inside, cannot be computed: not every network can be trained."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        said = (str(error).strip().splitlines() or [""])[0][:200]
        raise UserError(
            f"--method: the network's gradient cannot be computed (RuntimeError: {said}); mend the network, or use a "
            "method that reads the weights alone, like l1"
        ) from error


def rows_in(network: PrunableNetwork, layers: Mapping[str, nn.Module]) -> dict[str, Rows]:
    """The place of images in the layers' activations, see `rows_of_images`; a layer without an entry has none."""
    return rows_of_images(lambda images: network.run(network.model, images), network.example, layers)
