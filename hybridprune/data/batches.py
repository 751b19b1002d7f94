"""Batches of an image set: repeatable and resumable ones for training, plain ones for evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from hybridprune.batch import Batch, Share
from hybridprune.data.augment import mixed_seed, scale_and_shift, scaled
from hybridprune.data.dataset import ImageSet


def batch_sizes(images: int, batch_size: int) -> list[int]:
    """The sizes of an epoch's batches, however many processes share them.

    A partial last one is dropped if at least two full ones come before it, and a rest of one image always: BatchNorm
    cannot take statistics of a single pixel.
    """
    full, rest = divmod(images, batch_size)
    return [batch_size] * full + [rest] * (full < 2 and (rest > 1 or full == 0))


class TrainBatches:
    """Shuffled batches of ``data[ids]``, cropped at random and mirrored as wished (`ImageSet.augmented`).

    An epoch is a pure function of (seed, epoch). Its crops and flips belong to the image and not to the place
    in the order: an image gets the same ones whatever ``ids`` and ``batch_size`` are. A partial last batch is
    dropped if at least two full ones come before it.

    ``batch_size`` is that of all ``processes`` together; each gets its ``rank``'s share of every batch.
    """

    def __init__(
        self,
        data: ImageSet,
        ids: Tensor,
        *,
        batch_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        crop: bool,
        flip: bool,
        seed: int,
        device: torch.device | str,
        channels_last: bool,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        assert ids.dtype == torch.int64 and ids.ndim == 1 and len(ids) > 0 and batch_size > 0
        assert processes == 1 or min(batch_sizes(len(ids), batch_size)) >= 2 * processes, "no image for some process"
        self._data = data
        self._ids = ids
        self._batch_size = batch_size
        self._augment = partial(data.augmented, crop=crop, flip=flip)
        self.seed = seed
        self._rank, self._processes = rank, processes
        self._output = _Output.of(torch.device(device), mean, std, channels_last)

    def __len__(self) -> int:
        return len(batch_sizes(len(self._ids), self._batch_size))

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch (numbered from 0) from batch ``start`` on."""
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, epoch))
        read = self._augment(generator)
        order = self._ids[torch.randperm(len(self._ids), generator=generator)]
        wholes = order.split(self._batch_size)[start : len(self)]
        shares = [Share.of(len(whole), self._rank, self._processes) for whole in wholes]
        parts = [whole[share.start : share.stop] for whole, share in zip(wholes, shares, strict=True)]
        for index, share, images in zip(parts, shares, read(parts, self._output.send), strict=True):
            shared = None if self._processes == 1 else share
            yield self._output.batch(images, self._data.labels[index], index, shared)


class EvalBatches:
    """All of ``data[ids]`` (ids None: of ``data``) in order, not augmented; the last batch may be smaller.

    Each of several ``processes`` gets the batches of its share of the images.
    """

    def __init__(
        self,
        data: ImageSet,
        ids: Tensor | None,
        *,
        batch_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str,
        channels_last: bool,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self._data = data
        ids = torch.arange(len(data)) if ids is None else ids
        self.share = Share.of(len(ids), rank, processes)
        """Which of the images are this process's."""
        self._batches = ids[self.share.start : self.share.stop].split(batch_size)
        self._output = _Output.of(torch.device(device), mean, std, channels_last)

    def __len__(self) -> int:
        return len(self._batches)

    @property
    def num_images(self) -> int:
        """Images of all processes together."""
        return self.share.whole

    def __iter__(self) -> Iterator[Batch]:
        for index, images in zip(self._batches, self._data.plain(self._batches, self._output.send), strict=True):
            yield self._output.batch(images, self._data.labels[index], index)


@dataclass(frozen=True)
class _Output:
    """Where batches go and in which form."""

    device: torch.device
    scale: Tensor
    shift: Tensor
    memory_format: torch.memory_format

    @staticmethod
    def of(device: torch.device, mean: Sequence[float], std: Sequence[float], channels_last: bool) -> _Output:
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        return _Output(device, *scale_and_shift(mean, std, device), memory_format)

    def send(self, tensor: Tensor) -> Tensor:
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

    def batch(self, images: Tensor, labels: Tensor, index: Tensor, share: Share | None = None) -> Batch:
        floats = scaled(images, self.scale, self.shift, self.memory_format)
        return Batch(floats, self.send(labels), self.send(index), share)
