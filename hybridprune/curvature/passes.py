"""Forward and backward passes over batches in which a statistic sees every layer's input and output gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from hybridprune.batch import Batch, at_least_one
from hybridprune.curvature.extension import observed
from hybridprune.curvature.geometry import Geometry, feature_map, geometry_of
from hybridprune.curvature.likelihood import Likelihood
from hybridprune.curvature.rows import Rows
from hybridprune.errors import RunFailed, UserError
from hybridprune.nested import images_in
from hybridprune.processes import is_own

Forward = Callable[[Any], Any]


class Seen(NamedTuple):
    """The inputs and output gradients that one layer saw of a batch."""

    x: Tensor
    """Input maps ``[b m, C_in, H, W]``, the m frames of an image following each other."""
    g: Tensor
    """``[b m, C_out, H', W']``: the gradient of the batch's mean loss in the output."""
    geometry: Geometry
    frames: int
    """m"""
    batch_size: int
    """B >= b, the number of images over which the loss is a mean."""


class Ran(NamedTuple):
    """A batch that was gone through, by this process or by another."""

    images: int
    here: bool


Add = Callable[[str, Seen | None], None]
"""Called with a layer's name and what it saw; None if its rows are not of so many images."""


def passes(
    forward: Forward,
    layers: Mapping[str, nn.Module],
    batches: Iterable[Batch],
    add: Add,
    *,
    fisher_type: str,
    seed: int,
    shared: bool,
    likelihood: Likelihood,
    rows: Mapping[str, Rows],
) -> Iterator[Ran]:
    """Run the batches, or those that are this process's if they are ``shared``, and call ``add`` for their layers.

    Yield every batch, another's as well, once what it adds has been added.

    The gradients are those of the likelihood's mean over the batch's images. Targets that are sampled depend on the
    seed and the global number of the batch alone, not on which process runs it. ``rows`` tell where the images are in
    the layers' activations; by default each has one row.

    Raises:
        UserError: if ``fisher_type`` is neither ``"true"`` nor ``"exp"``.
        RunFailed: if an output or a loss is not finite; the message numbers the batch.
        ValueError: if there is no batch, or a layer has no rule, runs twice in one forward pass, or is followed
            by an in-place change of its input.
    """
    if fisher_type not in ("true", "exp"):
        raise UserError(f"fisher_type is {fisher_type!r}: choose 'true' (sampled) or 'exp' (given labels)")
    names = {layer: name for name, layer in layers.items()}
    geometries = {name: geometry_of(layer) for name, layer in layers.items()}
    device = next((layer.get_parameter("weight").device.type for layer in layers.values()), "cpu")
    batch_size = 0

    def statistic(layer: nn.Module, x: Tensor, g: Tensor) -> None:
        if x.numel():
            name = names[layer]
            add(name, _seen(layer, x, g, geometries[name], rows.get(name, Rows()), batch_size))

    with observed(layers.values(), statistic) as backward:
        for number, batch in enumerate(at_least_one(batches, "curvature"), start=1):
            found = images_in(batch.images)
            assert found is not None, "a batch without images"
            batch_size = found
            if shared and not is_own(number - 1):
                yield Ran(batch_size, here=False)
                continue
            with torch.enable_grad(), torch.autocast(device, enabled=False):
                output = forward(batch.images)
                _check_finite(output, number, "output")
                loss = None
                if fisher_type == "true":
                    loss = likelihood.sampled(output, batch.labels, _generator(seed, number - 1))
                if loss is None:
                    loss = likelihood.loss(output, batch.labels)
                _check_finite(loss, number, "loss")
                backward(loss)
            yield Ran(batch_size, here=True)


def _seen(layer: nn.Module, x: Tensor, g: Tensor, geometry: Geometry, rows: Rows, batch_size: int) -> Seen | None:
    weight = layer.get_parameter("weight")  # a network may compute in half precision
    inputs, gradients = rows.images_first(x.to(weight.dtype)), rows.images_first(g.to(weight.dtype))
    if inputs is None or gradients is None or len(inputs) > batch_size:
        return None
    if isinstance(layer, nn.Linear):
        return Seen(feature_map(inputs), feature_map(gradients), geometry, 1, batch_size)
    return Seen(inputs.flatten(0, 1), gradients.flatten(0, 1), geometry, rows.each, batch_size)


def _generator(seed: int, number: int) -> torch.Generator:
    """The batch's own random numbers; on the CPU, so that a seed means the same everywhere."""
    mixed = np.random.SeedSequence(seed, spawn_key=(number,)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(mixed[0]))


def is_usable(output: Any) -> bool:
    """Whether a tensor is a number everywhere; minus infinity is a legitimate logit, of a class that cannot be."""
    return not isinstance(output, Tensor) or bool((output.detach() < float("inf")).all())


def _check_finite(value: Any, number: int, what: str) -> None:
    if not is_usable(value):
        raise RunFailed(f"curvature: the {what} for batch {number} is not finite; look for NaN in its images")
