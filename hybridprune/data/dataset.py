"""What every source returns: two labelled sets of uint8 images, held in memory, and their identity."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_CHUNK = 1000  # images a step, which bounds the memory of the float64 copies


@dataclass(frozen=True)
class LabelledImages:
    """Images, uint8 ``[N, 3, H, W]`` (contiguous), and their class ids, int64 ``[N]``."""

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        assert self.images.dtype == torch.uint8 and self.images.is_contiguous()
        assert self.images.ndim == 4 and self.images.shape[1] == 3, self.images.shape
        assert self.labels.dtype == torch.int64 and self.labels.shape == self.images.shape[:1]

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Dataset:
    """A training and a test set with the same classes.

    ``mean`` and ``std`` are those of the train pixels scaled to [0, 1], a value per channel. ``flippable``
    says whether a mirrored image keeps its class. ``digest`` identifies the content (sha256, hex), wherever
    it lies.
    """

    name: str
    train: LabelledImages
    test: LabelledImages
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flippable: bool
    digest: str


def pixel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per-channel mean and population standard deviation of uint8 images ``[N, C, H, W]`` scaled to [0, 1].

    The sums are of integers, below 2^53 and held in float64, hence exact whatever their order. No deviation
    is given as less than 1/255, so that a constant channel can be divided by it.
    """
    total = torch.zeros(images.shape[1], dtype=torch.float64)
    squares = torch.zeros_like(total)
    for chunk in images.split(_CHUNK):
        pixels = chunk.to(torch.float64)
        total += pixels.sum(dim=(0, 2, 3))
        squares += pixels.square_().sum(dim=(0, 2, 3))
    count = images.numel() // images.shape[1]
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=1.0).sqrt()
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())


def array_digest(classes: Sequence[str], *sets: LabelledImages) -> str:
    """sha256 (hex) of the class names and the raw arrays, shapes included."""
    digest = hashlib.sha256(repr(tuple(classes)).encode())
    for data in sets:
        digest.update(repr(tuple(data.images.shape)).encode())
        digest.update(data.images.numpy().data)
        digest.update(data.labels.numpy().data)
    return digest.hexdigest()
