"""Resizing of uint8 images, the same for every source."""

from __future__ import annotations

import torch
from torch import Tensor

_CHUNK = 1000  # images a step: the interpolation may work in float32, four times the memory
_MARGIN = 256 / 224  # of the shorter side over the crop: what ImageNet's classifiers are evaluated with


def resize_images(images: Tensor, size: int, centre_crop: bool = False) -> Tensor:
    """Images uint8 ``[N, 3, h, w]`` to ``[N, 3, size, size]``: bilinear, antialiased.

    Both sides are scaled to ``size``, which does not keep the aspect. ``centre_crop``: the shorter side is scaled to
    256/224 of it, whatever it was, and the middle is cut out.
    """
    if images.shape[-2:] == (size, size) and not centre_crop:
        return images.contiguous()
    # Here and not above: torchvision brings torch's compiler along, the slowest of all imports.
    from torchvision.transforms.v2 import functional as transforms

    if centre_crop:
        scaled = transforms.resize(images, [round(size * _MARGIN)], antialias=True)
        return transforms.center_crop(scaled, [size, size]).contiguous()
    resized = torch.empty(len(images), images.shape[1], size, size, dtype=torch.uint8)
    for target, chunk in zip(resized.split(_CHUNK), images.split(_CHUNK), strict=True):
        target.copy_(transforms.resize(chunk, [size, size], antialias=True))
    return resized
