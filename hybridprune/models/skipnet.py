"""A residual backbone whose blocks are gated per image (SkipNet, Wang et al. 2018)."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from hybridprune.models.backbone import Backbone, ResidualBlock
from hybridprune.models.gates import GATES, UNGATED, RecurrentGate
from hybridprune.models.routed import Mode, RoutedNetwork, images_at

LARGE = 8 << 20
"""Bytes of a block's input from which on the memory of copies matters."""


class RoutingState(NamedTuple):
    """Between two blocks: the features ``[B, C, H, W]`` and how many blocks are behind us.

    Without gates, the images themselves.
    """

    features: Tensor
    blocks_done: int

    @property
    def gate(self) -> int:
        """The gate that decides next; N when all have."""
        return self.blocks_done - 1


class GatedNetwork(RoutedNetwork):
    """``backbone`` with a gate after each block but the last; block 0 always runs.

    Without gates (N = 0) the backbone is run as it is: one that is no `Backbone` has no blocks to stand at, and for any
    other it may be asked.
    """

    body = "backbone"

    def __init__(self, backbone: nn.Module, gate: str = "rnn") -> None:
        """``gate`` names one of `GATES`, or is `UNGATED`."""
        super().__init__()
        # Any: beyond the protocol, backbones have layers of their own.
        self.backbone: Any = backbone
        channels = backbone.block_channels[:-1] if isinstance(backbone, Backbone) and gate != UNGATED else None
        self._routes = channels is not None
        # Any: kinds of gates have layers of their own.
        self.gate: Any = RecurrentGate(()) if channels is None else GATES[gate](channels)

    @property
    def num_blocks(self) -> int:
        """Blocks of the backbone that are run one by one; 0 where it is run as it is."""
        return len(self.backbone.blocks) if self._routes else 0

    @property
    def num_gates(self) -> int:
        """N, the number of gated blocks."""
        return max(self.num_blocks - 1, 0)

    @property
    def observation_size(self) -> int:
        """Channels of the widest block."""
        return max(self.backbone.block_channels)

    def block(self, index: int) -> ResidualBlock:
        """Block ``index`` of the backbone."""
        return self.backbone.blocks[index]

    def start(self, images: Tensor) -> RoutingState:
        """Run the stem and block 0 on ``[B, 3, H, W]`` images."""
        if not self._routes:
            return RoutingState(images, 0)
        return RoutingState(self.block(0)(self.backbone.stem(images)), 1)

    def observe(self, state: RoutingState) -> Tensor:
        """The features, globally pooled, ``[B, C]``."""
        return state.features.mean(dim=(2, 3))

    def advance(self, state: RoutingState, decision: Tensor, mode: Mode) -> RoutingState:
        """Apply the decisions ``[B]`` in {0, 1} to the next block."""
        x = state.features
        assert decision.shape == x.shape[:1], (decision.shape, x.shape)
        block = self.block(state.blocks_done)
        if mode == "masked":
            skipped = block.skip(x)
            executed = block.execute(x, skipped)
            # lerp is one kernel and exact at 0 and 1.
            features = torch.lerp(skipped, executed, decision.to(x.dtype).view(-1, 1, 1, 1))
        else:
            features = execute_chosen(block, x, decision)
        return RoutingState(features, state.blocks_done + 1)

    def finish(self, state: RoutingState) -> Tensor:
        """Logits ``[B, classes]`` after the last block."""
        assert state.blocks_done == self.num_blocks
        return self.backbone.head(state.features) if self._routes else self.backbone(state.features)


def execute_chosen(block: ResidualBlock, x: Tensor, decision: Tensor) -> Tensor:
    """Run ``block`` on the images whose decision is 1; copy nothing when all or none are.

    ``x`` is never written to: the state before may still be held by a caller.
    """
    skipped = block.skip(x)
    if len(x) == 1:  # no indices needed
        return block.execute(x, skipped) if decision else skipped
    chosen = decision.nonzero().squeeze(1)
    if len(chosen) == 0:
        return skipped
    if len(chosen) == len(x):
        return block.execute(x, skipped)
    shares_memory = skipped.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    output = skipped.clone() if shares_memory or torch.is_grad_enabled() else skipped
    pieces = math.ceil(len(chosen) / _images_at_once(block, x))
    for ids in chosen.chunk(pieces):  # of one size: a few images left over do not fill the processor
        some = images_at(x, ids)
        executed = block.execute(some, some if skipped is x else images_at(skipped, ids))
        output.index_copy_(0, ids, executed.to(output.dtype))
        del some, executed  # not to be alive beside the next ones
    return output


def _images_at_once(block: ResidualBlock, x: Tensor) -> int:
    """How many images of ``x`` to execute together: with a third of them the peak of memory is the dense block's.

    It holds three tensors, its input and a layer's in and out; here all images are in and out, the chosen ones thrice.
    All, where ``x`` is not `LARGE`, for a few images do not fill the processor, and where it matters which are
    together: for gradients' graphs, and for layers in training mode.
    """
    small = x.numel() * x.element_size() < LARGE  # torch.compile does not know x.nbytes of a size that may vary
    if small or torch.is_grad_enabled() or any(module.training for module in cast(nn.Module, block).modules()):
        return len(x)
    return math.ceil(len(x) / 3)
