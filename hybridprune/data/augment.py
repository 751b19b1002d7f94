"""Augmentation and normalisation: pure functions on tensors of any device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hybridprune.ambient import seeded
from hybridprune.data.resize import resize_images


def mixed_seed(*numbers: int) -> int:
    """A well-mixed 64-bit seed of numbers >= 0: neighbouring ones must not share a stream."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def resized_crop_flip(image: Tensor, size: int, *, crop: bool, flip: bool, seed: int) -> Tensor:
    """One image of any size, uint8 ``[3, h, w]``, cut, scaled to ``[3, size, size]`` and mirrored by ``seed``.

    ``crop``: a random part of it, 8 to 100 % of the area with an aspect between 3/4 and 4/3 (Szegedy et al. 2015, as
    torchvision's RandomResizedCrop draws it), else its middle; ``flip``: mirrored left to right every other time.
    """
    # torchvision draws from the global stream, which others are using.
    with seeded(seed):
        image = _random_resized_crop(size)(image) if crop else resize_images(image[None], size, centre_crop=True)[0]
        return image.flip(2) if flip and torch.rand(()) < 0.5 else image


@cache
def _random_resized_crop(size: int) -> Callable[[Tensor], Tensor]:
    from torchvision.transforms import v2  # slow to import, and only streamed images need it

    return v2.RandomResizedCrop(size, antialias=True)


def crop_flip(images: Tensor, offsets: Tensor, flips: Tensor, padding: int) -> Tensor:
    """Zero-pad, crop to the old size and mirror every image by its own draw.

    images: uint8 ``[B, 3, H, W]``; offsets: int64 ``[B, 2]``, the crop's top row and left column in
    ``[0, 2 padding]``; flips: bool ``[B]``, mirrored left to right after the crop. Returns uint8
    ``[B, 3, H, W]``.
    """
    batch, _, height, width = images.shape
    assert offsets.shape == (batch, 2) and flips.shape == (batch,), (offsets.shape, flips.shape)
    padded = F.pad(images, (padding, padding, padding, padding))
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view: [B, 3, 2p + 1, 2p + 1, H, W]
    crops = windows[torch.arange(batch, device=images.device), :, offsets[:, 0], offsets[:, 1]]
    return torch.where(flips.view(-1, 1, 1, 1), crops.flip(3), crops)


def normalise(
    images: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    memory_format: torch.memory_format,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """``(images / 255 - mean) / std`` per channel: uint8 ``[B, C, H, W]`` to ``dtype``, ``memory_format``."""
    return scaled(images, *scale_and_shift(mean, std, images.device), memory_format, dtype)


def scale_and_shift(mean: Sequence[float], std: Sequence[float], device: torch.device) -> tuple[Tensor, Tensor]:
    """The scale and the shift of normalised bytes, fp32 ``[1, C, 1, 1]`` each.

    To be made once: the way to a GPU makes the host wait.
    """
    assert len(mean) == len(std), (len(mean), len(std))
    centre = torch.tensor(mean, dtype=torch.float64).view(1, -1, 1, 1)
    spread = torch.tensor(std, dtype=torch.float64).view(1, -1, 1, 1)
    return (1 / (255 * spread)).float().to(device), (-centre / spread).float().to(device)


def scaled(
    images: Tensor,
    scale: Tensor,
    shift: Tensor,
    memory_format: torch.memory_format,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """``images scale + shift``: uint8 ``[B, C, H, W]`` to ``dtype``, ``memory_format``."""
    assert scale.shape == shift.shape == (1, images.shape[1], 1, 1), (scale.shape, shift.shape, images.shape)
    # The layout is changed last: as float32 that copy is several times faster than as uint8.
    return images.to(torch.float32).mul_(scale).add_(shift).to(dtype).contiguous(memory_format=memory_format)
