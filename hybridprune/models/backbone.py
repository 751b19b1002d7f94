"""The protocol of a network that can be gated block by block."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor, nn


class ResidualBlock(Protocol):
    """A block that one image may skip and another execute; as a module it is ``execute(x, skip(x))``."""

    def skip(self, x: Tensor) -> Tensor:
        """The remainder of the block when it is skipped, ``[B, C', H', W']``. It runs for every image."""
        ...

    def execute(self, x: Tensor, skipped: Tensor) -> Tensor:
        """The executed block's output ``[B, C', H', W']``, given ``skipped = skip(x)``: the avoidable work."""
        ...

    def __call__(self, x: Tensor) -> Tensor: ...


@runtime_checkable
class Backbone(Protocol):
    """A module that is ``head(blocks(stem(images)))``, where every block is a `ResidualBlock`."""

    blocks: nn.ModuleList

    @property
    def block_channels(self) -> list[int]:
        """Output channels of each block."""
        ...

    def stem(self, images: Tensor) -> Tensor:
        """Images ``[B, 3, H, W]`` to the first block's input."""
        ...

    def head(self, x: Tensor) -> Tensor:
        """The last block's output to logits ``[B, classes]``."""
        ...
