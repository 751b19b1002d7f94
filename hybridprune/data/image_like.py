"""Images as users hold them, in files, in Pillow, NumPy or PyTorch, one or many: each as a uint8 tensor."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hybridprune.data.decode import decode_file
from hybridprune.data.pixels import rgb_pixels
from hybridprune.errors import UserError

ImageLike = str | os.PathLike[str] | Image.Image | np.ndarray | Tensor
"""A path, a Pillow image, a uint8 array ``[H, W, 3]``, ``[H, W, 1]`` or ``[H, W]``, or a uint8 tensor ``[3, H, W]`` or
``[1, H, W]``; with one more dimension in front, an array of three or a tensor is a batch of images."""

_TAKES = (
    "give a path, a Pillow image, a uint8 array [H, W, 3], [H, W, 1] or [H, W], a uint8 tensor [3, H, W] or [1, H, W], "
    "a batch [N, ...] of such arrays or tensors with channels, or a list of these"
)


def each_image(images: ImageLike | Iterable[ImageLike]) -> Iterator[Tensor]:
    """All images as RGB, uint8 ``[3, h, w]`` on the CPU, in their order and in their own sizes.

    Raises UserError, naming the file or the place, for what is no image.
    """
    one = isinstance(images, str | os.PathLike | Image.Image | np.ndarray | Tensor | Mapping | bytes)
    several = [images] if one or not isinstance(images, Iterable) else images
    single = (image for given in several for image in _singles(given))
    return (_pixels(image, place) for place, image in enumerate(single))


def _singles(given: object) -> Iterable[object]:
    return given if isinstance(given, np.ndarray | Tensor) and given.ndim == 4 else [given]


def _pixels(image: object, place: int) -> Tensor:
    if isinstance(image, str | os.PathLike):
        return decode_file(Path(image))
    if isinstance(image, Image.Image):
        try:
            return torch.from_numpy(rgb_pixels(image)).permute(2, 0, 1)
        except (ValueError, OSError) as error:
            raise UserError(f"image {place}: {error}; {_TAKES}") from error
    kind = type(image).__name__
    if isinstance(image, np.ndarray | Tensor):
        kind = f"{image.dtype} {kind} {list(image.shape)}"
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim in (2, 3) and image.size:
        # A copy: PyTorch wants write access and positive strides.
        image = torch.from_numpy(np.array(np.atleast_3d(image), order="C")).permute(2, 0, 1)
    if isinstance(image, Tensor) and image.dtype == torch.uint8 and image.numel() and image.shape[:-2] in ((1,), (3,)):
        return image.cpu().expand(3, -1, -1)
    raise UserError(f"image {place} is a {kind}; {_TAKES}")
