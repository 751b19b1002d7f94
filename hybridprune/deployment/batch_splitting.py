"""Large batches in pieces of fewer images: what fits into caches, and is not mapped anew by each operation."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from hybridprune.deployment.cascade import DeployedCascade, Forked
from hybridprune.deployment.network import DeployedNetwork

SMALLEST = 16
ALL = "all"
"""The name of a batch that is not split."""


class InPieces(nn.Module):
    """``module`` on at most ``piece`` images at a time: ``[B, 3, H, W]`` to logits ``[B, classes]``."""

    def __init__(self, module: nn.Module, piece: int) -> None:
        super().__init__()
        self.module = module
        self.piece = piece
        self.train(module.training)

    def forward(self, images: Tensor) -> Tensor:
        if len(images) <= self.piece:
            return self.module(images)
        return torch.cat([self.module(each) for each in images.split(self.piece)])


def in_pieces(module: nn.Module, piece: int | None) -> nn.Module:
    """A module that runs ``module``, of the same weights, on at most ``piece`` images at a time; None: on all."""
    assert piece is None or (isinstance(piece, int) and piece > 0), piece
    if isinstance(module, DeployedNetwork):
        module = copy.copy(module)
        module.piece = piece
        return module
    return module if piece is None else InPieces(module, piece)


def in_one(module: nn.Module) -> nn.Module:
    """The inverse of `in_pieces`: a module of the same weights that runs whole batches, as do a cascade's members."""
    if isinstance(module, DeployedCascade):
        return module.with_members([in_one(member) for member in module.members])
    if isinstance(module, Forked):
        return Forked(in_one(module.trunk), in_one(module.rest))
    return in_pieces(module.module if isinstance(module, InPieces) else module, None)


def piece_sizes(batch: int) -> dict[str, int | None]:
    """The pieces, by name, that a batch can be split into; all together comes first."""
    sizes: dict[str, int | None] = {ALL: None}
    size = SMALLEST
    while size < batch:
        sizes[str(size)] = size
        size *= 2
    return sizes
