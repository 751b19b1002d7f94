"""Rows of a layer's activations that are one image's, found by running the network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hybridprune.hooks import attached
from hybridprune.nested import images_in, joined, with_tensors
from hybridprune.torch_alone import TorchAlone

IMAGES = 5
"""A number of images that few other sizes are a multiple of."""
MARKED = 1
"""The place of the image that is NaN."""


@dataclass(frozen=True)
class Rows:
    """The place of images in a layer's activations: ``each`` rows of every image along one axis."""

    axis: int = 0
    each: int = 1
    in_turn: bool = False
    """Whether the images take turns along the axis, instead of the rows of an image following each other."""

    def images_first(self, activations: Tensor) -> Tensor | None:
        """The activations as ``[images, each, ...]``; None if the axis is no multiple of ``each``."""
        moved = activations.movedim(self.axis, 0)
        if len(moved) % self.each:
            return None
        if self.in_turn:
            return moved.unflatten(0, (self.each, -1)).transpose(0, 1)
        return moved.unflatten(0, (-1, self.each))


@torch.no_grad()
def rows_of_images(run: Callable[[Any], object], example: Any, layers: Mapping[str, nn.Module]) -> dict[str, Rows]:
    """The place of images in the inputs of those layers of which this can be told.

    The network runs on copies of the example, one of which is NaN, and the rows of each layer's input that become NaN
    are that image's: tokens and windows folded into the batch, frames of a video, sequence-first tensors. A layer that
    no mark reaches, or all of whose rows are marked, has its images along its first axis if that is as long as there
    are images. A layer without an entry has rows of which no image has the same number as any other: a table's, say.

    Args:
        run: passes a batch through the network, which is in eval mode.
        example: one image in any structure, as ``run`` takes it.
        layers: ``nn.Linear`` modules, and others that read ``[B, C, H, W]``, by name; of one that runs several times
            the last pass counts.
    """
    assert images_in(example) == 1
    nan = with_tensors(example, lambda x: torch.full_like(x, torch.nan) if x.is_floating_point() else x)
    try:
        with TorchAlone():
            seen = _marks(run, joined([example, nan, *[example] * (IMAGES - 2)])[0], layers)
    except Exception:  # of foreign code that takes no NaN
        seen = _marks(run, joined([example] * IMAGES)[0], layers)
    found = {name: _rows(marks) for name, marks in seen.items()}
    return {name: rows for name, rows in found.items() if rows is not None}


def _marks(run: Callable[[Any], object], batch: Any, layers: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Which rows of each layer's input are NaN: the shape of a linear layer's input without C, of others ``[R]``."""
    found: dict[str, Tensor] = {}

    def reader(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def read(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            if args:
                nan = args[0].isnan()
                found[name] = (nan.any(-1) if isinstance(module, nn.Linear) else nan.flatten(1).any(1)).cpu()

        return read

    handles = [module.register_forward_pre_hook(reader(name)) for name, module in layers.items()]
    with attached(handles):
        run(batch)
    return found


def _rows(marks: Tensor) -> Rows | None:
    """The rows whose marks are these."""
    best, most = None, 0
    for axis, length in enumerate(marks.shape):
        if length % IMAGES:
            continue
        others = [other for other in range(marks.ndim) if other != axis]
        along = marks.any(others) if others else marks
        each = length // IMAGES
        for in_turn in (False, True):
            place = torch.arange(length)
            own = (place % IMAGES if in_turn else place // each) == MARKED
            # rows of the image that have not met its content yet, such as class tokens, are unmarked
            if not bool((along & ~own).any()) and (covered := int((along & own).sum()) * IMAGES) > most * length:
                best, most = Rows(axis, each, in_turn and each > 1), covered / length
    if best is None and marks.ndim and len(marks) == IMAGES and bool(marks.all() | ~marks.any()):
        return Rows()
    return best
