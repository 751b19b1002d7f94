"""Numbers of components that a layer may become a sum of, and the rise of the loss that each is expected to cost."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch
from torch import Tensor

from hybridprune.models.factored import Ranks
from hybridprune.pruning.directions.components import WIDE
from hybridprune.pruning.directions.decomposition import Decomposition
from hybridprune.pruning.directions.layer_forms import ConvShape

TRIED = 10
"""Numbers of components that are really tried; between them the logarithm of the loss is interpolated."""
TRIED_WIDE = 6
"""The same of wide layers: the largest number, half of it, and so on."""
SEPARABLE = {"none": 0, "narrow": 2**20, "all": sys.maxsize}
"""The largest kernel, in weights, that may become separable."""


@dataclass(frozen=True)
class Separation:
    """Losses of a layer as a sum of components; as many as ``everything`` stand for the layer as it is."""

    losses: Tensor
    """``[everything + 1]``, by number, never growing, in double precision on the CPU; infinite below ``least``."""
    least: int

    @property
    def everything(self) -> int:
        """The number that means: not separated."""
        return len(self.losses) - 1

    @property
    def scores(self) -> Tensor:
        """``[everything]``, descending: what the last of so many components is worth."""
        reached = self.losses.clone()
        reached[: self.least] = self.losses[self.least]
        return (-reached.diff()).flip(0).cummax(0).values.flip(0)


def most_components(shape: ConvShape, form: Ranks, max_params: int | None, multiple: int) -> int:
    """The largest number of components, a multiple, that costs less than the layer in its present form; 0: none.

    It has at most ``max_params`` parameters, and of a wide layer three quarters of the cost.
    """
    if shape.kernel_area == 1:
        return 0  # a matrix: two-sided forms are sums of components already
    each = Ranks(1, 1, separable=True)
    most = (shape.macs(form) - 1) // shape.macs(each)
    if max_params is not None:
        fixed = shape.out_channels if shape.bias else 0
        most = min(most, (max_params - fixed) // (shape.params(each) - fixed))
    if shape.in_channels * shape.out_channels * shape.kernel_area > WIDE:
        most = 3 * most // 4  # as many components as cost a layer take the longest to find, and save the least
    return most // multiple * multiple


def separation(decomposition: Decomposition, least: int, most: int, scale: float) -> Separation | None:
    """The losses of ``least`` to ``most`` components, times ``scale``; None if there is no such number."""
    if most < least or float(decomposition.importance.sum()) <= 0:
        return None
    if decomposition.core.numel() > WIDE:
        tried = torch.tensor(sorted({least, *(max(least, most >> halved) for halved in range(TRIED_WIDE))}))
    else:
        tried = torch.linspace(least, most, min(TRIED, most - least + 1), dtype=torch.float64).round().long().unique()
    found = torch.tensor([decomposition.separation_loss(int(number)) for number in tried], dtype=torch.float64)
    logs = found.cummin(0).values.clamp(min=torch.finfo(torch.float64).tiny).log()
    numbers = torch.arange(least, most + 1)
    above = torch.searchsorted(tried, numbers).clamp(max=len(tried) - 1)
    below = (above - 1).clamp(min=0)
    width = (tried[above] - tried[below]).clamp(min=1)
    share = (numbers - tried[below]) / width
    between = (logs[below] + share * (logs[above] - logs[below])).exp() * scale
    losses = torch.full((most + 2,), torch.inf, dtype=torch.float64)
    losses[least : most + 1] = between
    losses[most + 1] = 0.0
    return Separation(losses, least)
