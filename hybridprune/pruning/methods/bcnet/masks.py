"""The widths of a network while they are learnt, as masks of channels, and the record of losses beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from hybridprune.pruning.channels.group import ChannelGroup
from hybridprune.pruning.methods.bcnet.bins import LEFT, bins_of, coverage
from hybridprune.pruning.sparse_training.masked_reading import Mask, attach

RECORD = "width_losses"


class WidthMask(Mask):
    """The channels of a group that a width has, from one side; all of them at first."""

    kept: Tensor
    """``[channels]``"""
    covers: Tensor
    """``[2, bins, channels]``, see `coverage`"""

    def __init__(self, like: Tensor, channels: int, bins: int) -> None:
        """``bins`` as `bins_of` says; device and type are those of ``like``."""
        super().__init__()
        self.channels, self.bins = channels, bins
        # Neither is saved: each step says what it needs.
        self.register_buffer("covers", coverage(channels, bins).to(like), persistent=False)
        self.register_buffer("kept", torch.ones(channels).to(like), persistent=False)

    def show(self, side: int, width: int) -> None:
        """Keep the ``width`` bins of a side."""
        self.kept.copy_(self.covers[side, width - 1])

    def forward(self) -> Tensor:
        """``[channels]`` in {0, 1}."""
        return self.kept


def attach_widths(model: nn.Module, groups: Sequence[ChannelGroup], bins: int) -> dict[str, WidthMask]:
    """Give each group a mask of at most so many bins, in place; by the group's name, see `attach`."""
    return attach(model, groups, lambda like, g: WidthMask(like, g.channels, bins_of(g.channels, bins)))


def show(masks: Sequence[WidthMask], side: int, widths: Sequence[int]) -> None:
    """Make the network the one of these widths, in bins, on a side."""
    for mask, width in zip(masks, widths, strict=True):
        mask.show(side, width)


def show_all(masks: Sequence[WidthMask]) -> None:
    """Make the network whole."""
    show(masks, LEFT, [mask.bins for mask in masks])


def attach_record(model: nn.Module, masks: Mapping[str, WidthMask], smallest: int) -> list[Tensor]:
    """Give each group a record of the ``smallest`` losses of each width, ``[bins, smallest]``, none so far (infinite).

    It is a buffer of the layer that the group is named after, saved with its weights until `take_record`.
    """
    for name, mask in masks.items():
        losses = torch.full((mask.bins, smallest), torch.inf, device=mask.kept.device)
        model.get_submodule(name).register_buffer(RECORD, losses)
    return [model.get_submodule(name).get_buffer(RECORD) for name in masks]


def take_record(model: nn.Module, groups: Sequence[ChannelGroup]) -> list[Tensor] | None:
    """The record of each group, on the CPU, which the network, in place, has no more; None without a training."""
    found = [model.get_submodule(group.name)._buffers.pop(RECORD, None) for group in groups]
    records = [each.cpu() for each in found if each is not None]
    assert len(records) in (0, len(groups)), "the groups are those of the training"
    return records or None
