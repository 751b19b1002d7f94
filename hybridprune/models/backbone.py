"""The bases of a network that can be gated block by block: a backbone, and the residual blocks that it is made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import cast

from torch import Tensor, nn


class ResidualBlock(nn.Module, ABC):
    """A block that one image may skip and another execute: ``execute(x, skip(x))``."""

    out_channels: int
    """``C'``, the channels of both answers."""

    @abstractmethod
    def skip(self, x: Tensor) -> Tensor:
        """The remainder of the block when it is skipped, ``[B, C', H', W']``. It runs for every image."""

    @abstractmethod
    def execute(self, x: Tensor, skipped: Tensor) -> Tensor:
        """The executed block's output ``[B, C', H', W']``, given ``skipped = skip(x)``: the avoidable work."""

    def forward(self, x: Tensor) -> Tensor:
        return self.execute(x, self.skip(x))


class Backbone(nn.Module, ABC):
    """A module that is ``head(blocks(stem(images)))``, where every block is a `ResidualBlock`."""

    blocks: nn.ModuleList
    stem_parts: tuple[str, ...] = ()
    """Names of the modules that nothing but ``stem`` runs. Where they are not given, no network can share a trunk."""

    @property
    def block_channels(self) -> list[int]:
        """Output channels of each block."""
        return [block.out_channels for block in cast(Iterable[ResidualBlock], self.blocks)]

    @abstractmethod
    def stem(self, images: Tensor) -> Tensor:
        """Images ``[B, 3, H, W]`` to the first block's input."""

    @abstractmethod
    def head(self, x: Tensor) -> Tensor:
        """The last block's output to logits ``[B, classes]``."""

    def linear_readers(self, block: int) -> list[str] | None:
        """Names of the layers that read what a block gives, with nothing but means over positions in between.

        None where something else reads it, such as a shortcut, a BatchNorm or an activation.
        """
        del block
        return None

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        for block in self.blocks:
            x = block(x)
        return self.head(x)
