"""The MACs of a network as a differentiable function of its groups' widths (pure)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hybridprune.pruning.budget.space import Space
from hybridprune.pruning.channels.space import ChannelCell


@dataclass(frozen=True)
class WidthMacs:
    """MACs of one image by the widths of G groups; there are K layers. In double precision, so integers are exact."""

    per_pair: Tensor
    """``[K]``: of a pair of an input and an output channel"""
    outside: tuple[Tensor, Tensor]
    """``[K]`` each: inputs and outputs that are in no group"""
    inputs: Tensor
    """``[K, G]``: inputs that go with a channel of a group"""
    outputs: Tensor
    """``[K, G]``"""
    other: float
    """Of the layers that no group changes."""

    @staticmethod
    def of(space: Space, device: torch.device) -> WidthMacs:
        """The MACs of a space of channels."""
        cells = [cell for cell in space.cells if isinstance(cell, ChannelCell) and cell.macs]
        full = torch.tensor(space.everything(), dtype=torch.float64)

        def per_group(counts: Sequence[tuple[int, ...]]) -> Tensor:
            matrix = torch.zeros(len(cells), len(full), dtype=torch.float64)
            for row, cell, values in zip(matrix, cells, counts, strict=True):
                row[list(cell.sets)] = torch.tensor(values, dtype=torch.float64)
            return matrix

        inputs, outputs = (per_group([getattr(c, side) for c in cells]) for side in ("per_input", "per_output"))
        whole = torch.tensor([(c.inputs, c.outputs) for c in cells], dtype=torch.float64)
        return WidthMacs(
            torch.tensor([c.macs for c in cells], dtype=torch.float64, device=device),
            ((whole[:, 0] - inputs @ full).to(device), (whole[:, 1] - outputs @ full).to(device)),
            inputs.to(device),
            outputs.to(device),
            float(space.other.macs),
        )

    def __call__(self, widths: Tensor) -> Tensor:
        """The MACs (0-d) at ``widths [G]``; a layer's input width is taken as a constant by the gradient."""
        assert widths.shape == self.inputs.shape[1:], widths.shape
        widths = widths.double()
        inputs = self.outside[0] + self.inputs @ widths.detach()
        outputs = self.outside[1] + self.outputs @ widths
        return (self.per_pair * inputs * outputs).sum() + self.other
