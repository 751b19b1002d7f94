"""Forward and backward passes over batches in which a statistic sees every layer's input and output gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridprune.curvature.extension import observed
from hybridprune.curvature.geometry import Geometry, feature_map, geometry_of
from hybridprune.curvature.shard import Shard
from hybridprune.errors import UserError

Forward = Callable[[Tensor], Tensor]
Batches = Iterable[tuple[Tensor, Tensor]]
Add = Callable[[str, Geometry, Tensor, Tensor, int], None]
"""Called as ``add(layer name, geometry, input map, output gradient map, batch size)``."""


def passes(
    forward: Forward,
    layers: Mapping[str, nn.Module],
    batches: Batches,
    add: Add,
    *,
    fisher_type: str,
    seed: int,
    shard: Shard,
) -> Iterator[int]:
    """Run the shard's batches and call ``add`` for their layers; yield the size of each batch, 0 if another's.

    The gradients are those of the batch's mean cross-entropy. Labels that are sampled depend on the seed and the
    global number of the batch alone, not on which process runs it.

    Raises:
        UserError: if ``fisher_type`` is neither ``"true"`` nor ``"exp"``.
        ValueError: if there is no batch, or a layer has no rule, runs twice in one forward pass, or is followed
            by an in-place change of its input.
    """
    if fisher_type not in ("true", "exp"):
        raise UserError(f"fisher_type is {fisher_type!r}: choose 'true' (sampled) or 'exp' (given labels)")
    names = {layer: name for name, layer in layers.items()}
    geometries = {name: geometry_of(layer) for name, layer in layers.items()}
    batch_size = number = 0

    def statistic(layer: nn.Module, x: Tensor, g: Tensor) -> None:
        if not len(x):
            return
        if isinstance(layer, nn.Linear):
            x, g = feature_map(x), feature_map(g)
        add(names[layer], geometries[names[layer]], x, g, batch_size)

    with observed(layers.values(), statistic) as backward:
        for number, (images, labels) in enumerate(batches, start=1):
            if not shard.owns(number - 1):
                yield 0
                continue
            batch_size = len(images)
            with torch.enable_grad(), torch.autocast(images.device.type, enabled=False):
                logits = forward(images)
                if fisher_type == "true":
                    labels = _sample_labels(logits.detach(), seed, number - 1)
                backward(F.cross_entropy(logits, labels.to(logits.device)))
            yield batch_size
    if not number:
        raise ValueError("curvature needs at least one batch of images")


def _sample_labels(logits: Tensor, seed: int, number: int) -> Tensor:
    """Draw one label per image from the softmax; on the CPU, so that a seed means the same everywhere."""
    mixed = np.random.SeedSequence(seed, spawn_key=(number,)).generate_state(1, np.uint64)
    generator = torch.Generator().manual_seed(int(mixed[0]))
    return torch.multinomial(logits.softmax(dim=1).cpu(), 1, generator=generator).squeeze(1)
