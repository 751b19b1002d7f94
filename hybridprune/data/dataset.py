"""Data sets: two labelled sets of uint8 images and their identity, from every source; and sets held in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from hybridprune.data.augment import crop_flip

Send = Callable[[Tensor], Tensor]
"""Takes a tensor of the CPU to the device that the images are used on."""

_CHUNK = 1000  # images a step, which bounds the memory of the float64 copies


class Reader(Protocol):
    """Gives the pixels of batches, one after the other."""

    def __call__(self, batches: Sequence[Tensor], send: Send) -> Iterator[Tensor]:
        """The images of each of ``batches``, ids int64 ``[B]``: uint8 ``[B, 3, H, W]``, sent."""
        ...


class ImageSet(Protocol):
    """Labelled images, all of one size when they are read; wherever they lie."""

    @property
    def labels(self) -> Tensor:
        """Class ids, int64 ``[N]``."""
        ...

    def __len__(self) -> int: ...

    def pixels(self, ids: Tensor) -> Tensor:
        """The images ``ids``, int64 ``[B]``, as they are evaluated: uint8 ``[B, 3, H, W]`` on the CPU."""
        ...

    def plain(self, batches: Sequence[Tensor], send: Send) -> Iterator[Tensor]:
        """A `Reader` of the images as they are evaluated."""
        ...

    def augmented(self, generator: torch.Generator, *, crop: bool, flip: bool) -> Reader:
        """A reader of randomly cropped and mirrored images, for one epoch.

        The draws come from ``generator`` and belong to the image: they are the same in whichever batch it is.
        """
        ...


@dataclass(frozen=True)
class LabelledImages:
    """Images in memory, uint8 ``[N, 3, H, W]`` (contiguous), and their class ids, int64 ``[N]``."""

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        assert self.images.dtype == torch.uint8 and self.images.is_contiguous()
        assert self.images.ndim == 4 and self.images.shape[1] == 3, self.images.shape
        assert self.labels.dtype == torch.int64 and self.labels.shape == self.images.shape[:1]

    def __len__(self) -> int:
        return len(self.images)

    def pixels(self, ids: Tensor) -> Tensor:
        """``images[ids]``"""
        return self.images.index_select(0, ids)

    def plain(self, batches: Sequence[Tensor], send: Send) -> Iterator[Tensor]:
        """The images as they are."""
        return (send(self.pixels(ids)) for ids in batches)

    def augmented(self, generator: torch.Generator, *, crop: bool, flip: bool) -> Reader:
        """``crop``: zero-padded by an eighth of the size, 4 of 32 pixels, and cropped to it at a random place."""
        padding = self.images.shape[-1] // 8 if crop else 0
        offsets = torch.randint(2 * padding + 1, (len(self), 2), generator=generator)
        flips = (torch.rand(len(self), generator=generator) < 0.5) & flip

        def read(batches: Sequence[Tensor], send: Send) -> Iterator[Tensor]:
            for ids in batches:
                yield crop_flip(send(self.pixels(ids)), send(offsets[ids]), send(flips[ids]), padding)

        return read


@dataclass(frozen=True)
class Dataset:
    """A training and a test set with the same classes.

    ``mean`` and ``std``, a value per channel, are what pixels scaled to [0, 1] are normalised by: those of the train
    images, or ImageNet's. ``flippable`` says whether a mirrored image keeps its class. ``digest`` identifies the
    content (sha256, hex), wherever it lies. ``centre_crop``: how images of other sizes are brought to this one
    (`resize_images`). ``held_out``: how many of the last train images are never trained on (`hold_out`). ``subtask``:
    the ids of the only classes whose images are used (`of_classes`); empty: all.
    """

    name: str
    train: ImageSet
    test: ImageSet
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flippable: bool
    digest: str
    centre_crop: bool = False
    held_out: int = 0
    subtask: tuple[int, ...] = ()

    @staticmethod
    def in_memory(
        name: str,
        train: LabelledImages,
        test: LabelledImages,
        classes: tuple[str, ...],
        *,
        flippable: bool,
        digest: str | None = None,
    ) -> Dataset:
        """The data set of images in memory, normalised by those of ``train``; ``digest``: by default of the arrays."""
        mean, std = pixel_statistics(train.images)
        digest = array_digest(classes, train, test) if digest is None else digest
        return Dataset(name, train, test, classes, mean, std, flippable, digest)


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
