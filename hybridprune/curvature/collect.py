"""Passes over batches that collect Kronecker factors and exact second moments of the weights' gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridprune.curvature.extension import observed
from hybridprune.curvature.factors import (
    Geometry,
    feature_map,
    geometry_of,
    gradient_factor,
    input_factor,
    sum_squared_weight_gradients,
)
from hybridprune.errors import UserError

Forward = Callable[[Tensor], Tensor]
Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class LayerFactors:
    """Kronecker factors of one layer: its Fisher is about ``positions`` times their Kronecker product.

    Attributes:
        input_factor: A ``[C_in, C_in]``, mean over the images that ran through the layer.
        gradient_factor: G ``[C_out, C_out]``, mean over all images; one that did not run through counts as 0.
        positions: number of output positions S, 1 for a linear layer.

    All three are 0 if no gradient ever reached the layer.
    """

    input_factor: Tensor
    gradient_factor: Tensor
    positions: int


@dataclass(frozen=True)
class SecondMoments:
    """Second moments of one layer's per-image weight gradients dW.

    Attributes:
        trace: mean over images of ``||dW||_F^2``.
        entries: mean over images of ``(Q_out^T dW Q_in)^2``, in the weight's shape; None without bases.
    """

    trace: float
    entries: Tensor | None


def collect_factors(
    forward: Forward,
    layers: Mapping[str, nn.Module],
    batches: Batches,
    *,
    fisher_type: str,
    moving_average: float,
    generator: torch.Generator,
) -> dict[str, LayerFactors]:
    """Return the Kronecker factors of the mean cross-entropy's Fisher (Grosse & Martens 2016, channels only).

    Args:
        forward: maps images to logits ``[B, classes]``, the network in eval mode, gate decisions constant.
        layers: the ``nn.Conv2d`` and ``nn.Linear`` modules to observe, by name.
        batches: pairs of images ``[B, C, H, W]`` and labels ``[B]``.
        fisher_type: ``"true"`` samples labels from the network's softmax, ``"exp"`` takes the given ones.
        moving_average: 0 for the mean over all images, or the decay per batch of a bias-corrected average.
        generator: a CPU generator, for the sampled labels.

    Raises:
        UserError: if ``fisher_type`` or ``moving_average`` is none of these.
        ValueError: if there is no batch, or a layer has no rule or runs twice in one forward pass.
    """
    if not 0 <= moving_average < 1:
        raise UserError(f"moving_average is {moving_average}: choose 0 (plain mean) or a decay below 1")
    sums = {name: _FactorSums.zeros_for(layer) for name, layer in layers.items()}

    def add(name: str, geometry: Geometry, x: Tensor, g: Tensor, batch_size: int) -> None:
        layer = sums[name]
        layer.input += input_factor(x, *geometry) * len(x)
        layer.input_images += len(x)
        layer.gradient += gradient_factor(g, batch_size) * batch_size
        layer.positions = g.shape[2] * g.shape[3]

    images = 0.0
    for batch_size in _passes(forward, layers, batches, add, fisher_type, generator):
        images += batch_size
        if moving_average:
            # sums and weights decay alike: their ratio is free of the start-up bias and of the last decay
            images *= moving_average
            for layer in sums.values():
                layer.decay(moving_average)
    return {
        name: LayerFactors(
            input_factor=layer.input / (layer.input_images or 1.0),
            gradient_factor=layer.gradient / images,
            positions=layer.positions,
        )
        for name, layer in sums.items()
    }


def collect_second_moments(
    forward: Forward,
    layers: Mapping[str, nn.Module],
    batches: Batches,
    *,
    bases: Mapping[str, tuple[Tensor, Tensor]] | None,
    fisher_type: str,
    generator: torch.Generator,
    chunk: int = 32,
) -> dict[str, SecondMoments]:
    """Return exact second moments of the per-image weight gradients, entry by entry in given bases.

    In the eigenbases of the Kronecker factors: the corrected eigenvalues of EKFAC (George et al. 2018).

    Args:
        bases: orthogonal ``(q_out [C_out, C_out], q_in [C_in, C_in])`` of every layer; None: traces only.
        chunk: number of images whose gradients, of one layer at one kernel offset, are in memory together.

    The other arguments, and what is raised, are those of `collect_factors`.
    """
    sums = {name: torch.zeros_like(layer.get_parameter("weight").detach()) for name, layer in layers.items()}

    def add(name: str, geometry: Geometry, x: Tensor, g: Tensor, batch_size: int) -> None:
        if bases is not None:
            q_out, q_in = bases[name]
            x, g = _rotate(x, q_in), _rotate(g, q_out)
        squares = sum_squared_weight_gradients(x, g, geometry, batch_size, chunk)
        sums[name] += squares.view_as(sums[name])

    images = sum(_passes(forward, layers, batches, add, fisher_type, generator))
    return {
        name: SecondMoments(
            trace=total.sum(dtype=torch.float64).item() / images,
            entries=None if bases is None else total / images,
        )
        for name, total in sums.items()
    }


@dataclass
class _FactorSums:
    input: Tensor
    input_images: float
    gradient: Tensor
    positions: int

    @classmethod
    def zeros_for(cls, layer: nn.Module) -> _FactorSums:
        weight = layer.get_parameter("weight").detach()
        c_out, c_in = weight.shape[:2]
        return cls(weight.new_zeros(c_in, c_in), 0.0, weight.new_zeros(c_out, c_out), 0)

    def decay(self, factor: float) -> None:
        self.input *= factor
        self.input_images *= factor
        self.gradient *= factor


def _passes(
    forward: Forward,
    layers: Mapping[str, nn.Module],
    batches: Batches,
    add: Callable[[str, Geometry, Tensor, Tensor, int], None],
    fisher_type: str,
    generator: torch.Generator,
) -> Iterator[int]:
    """Run every batch, ``add(name, geometry, x, g, batch_size)`` for its layers, then yield its size."""
    if fisher_type not in ("true", "exp"):
        raise UserError(f"fisher_type is {fisher_type!r}: choose 'true' (sampled) or 'exp' (given labels)")
    names = {layer: name for name, layer in layers.items()}
    geometries = {name: geometry_of(layer) for name, layer in layers.items()}
    batch_size = 0

    def statistic(layer: nn.Module, x: Tensor, g: Tensor) -> None:
        if not len(x):
            return
        if isinstance(layer, nn.Linear):
            x, g = feature_map(x), feature_map(g)
        add(names[layer], geometries[names[layer]], x, g, batch_size)

    with observed(layers.values(), statistic) as backward:
        for images, labels in batches:
            batch_size = len(images)
            with torch.enable_grad(), torch.autocast(images.device.type, enabled=False):
                logits = forward(images)
                if fisher_type == "true":
                    labels = _sample_labels(logits.detach(), generator)
                backward(F.cross_entropy(logits, labels.to(logits.device)))
            yield batch_size
    if not batch_size:
        raise ValueError("curvature needs at least one batch of images")


def _sample_labels(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Draw one label per image from the softmax; on the CPU, so that a seed means the same everywhere."""
    return torch.multinomial(logits.softmax(dim=1).cpu(), 1, generator=generator).squeeze(1)


def _rotate(maps: Tensor, basis: Tensor) -> Tensor:
    """Return the feature maps ``[B, C, H, W]`` in the coordinates of an orthogonal basis ``[C, C]``."""
    assert basis.shape == (maps.shape[1], maps.shape[1])
    return (maps.permute(0, 2, 3, 1) @ basis.to(maps)).permute(0, 3, 1, 2)
