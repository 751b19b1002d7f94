"""Random numbers that belong to the images: the same in whichever batch, and in whichever process, an image is."""

from __future__ import annotations

import torch
from torch import Tensor

from hybridprune.store.seeds import generator


class Draws:
    """Uniform numbers in [0, 1), ``columns`` of them for each image of a set in each epoch.

    They depend on (seed, purpose, epoch, image) only, so a resumed training draws the same.
    """

    def __init__(self, images: int, columns: int, seed: int, *purpose: str | int) -> None:
        self._shape = images, columns
        self._seed, self._purpose = seed, purpose
        self._drawn = torch.empty(0)
        self._epoch = -1

    def __call__(self, epoch: int, index: Tensor) -> Tensor:
        """Those of the images ``index [B]``, on its device: ``[B, columns]``."""
        if epoch != self._epoch or self._drawn.device != index.device:
            drawn = torch.rand(self._shape, generator=generator(self._seed, *self._purpose, epoch))
            self._drawn, self._epoch = drawn.to(index.device), epoch
        return self._drawn[index]
