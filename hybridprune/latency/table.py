"""Times of one layer over its ranks or channels: grids of points that never fall, and what lies between (pure)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hybridprune.json_text import value_at
from hybridprune.models.factored import Ranks, form_name

CHANNELS = "channels"
"""The name of the grid of a dense layer over its numbers of channels."""
AXES = {"dense": 0, "input-sided": 1, "output-sided": 1, "two-sided": 2, "separable": 1}
"""How many ranks tell a layer of each form."""


def monotone(times: Tensor) -> Tensor:
    """``times [...]`` as the nearest that never fall along any axis: the middle of what bounds each from both sides.

    Each is at least the largest before it (in all axes), and at most the least behind it, in the mean of the two. What
    never falls is left as it is.
    """
    above, below = times, times
    for axis in range(times.ndim):
        above = above.cummax(axis).values
        below = below.flip(axis).cummin(axis).values.flip(axis)
    return (above + below) / 2


@dataclass(frozen=True)
class Grid:
    """Times at the points of a grid, of none, one or two axes."""

    axes: tuple[tuple[int, ...], ...]
    """Ascending coordinates, axis by axis."""
    ns: Tensor
    """In double precision, of as many axes; never falling along any of them."""

    def __post_init__(self) -> None:
        assert self.ns.shape == tuple(map(len, self.axes)), (self.ns.shape, self.axes)

    @staticmethod
    def measured(axes: Sequence[Sequence[int]], ns: Tensor) -> Grid:
        """The grid of times as a clock gave them, which may fall by its noise."""
        return Grid(tuple(map(tuple, axes)), monotone(ns.double()))

    def at(self, *places: Tensor) -> Tensor:
        """Times ``[M]`` at as many places, coordinates axis by axis: multilinear between points, constant beyond."""
        assert len(places) == len(self.axes)
        total = self.ns
        corners: list[tuple[Tensor, Tensor, Tensor]] = []
        for points, place in zip(self._points, places, strict=True):
            place = place.double().clamp(points[0], points[-1])
            above = torch.searchsorted(points, place).clamp(min=min(1, len(points) - 1))
            below = (above - 1).clamp(min=0)
            width = (points[above] - points[below]).clamp(min=1)
            corners.append((below, above, (place - points[below]) / width))
        if not corners:
            return total
        if len(corners) == 1:
            ((below, above, share),) = corners
            return total[below] + share * (total[above] - total[below])
        (b, a, share), (b2, a2, share2) = corners
        low = total[b, b2] + share2 * (total[b, a2] - total[b, b2])
        high = total[a, b2] + share2 * (total[a, a2] - total[a, b2])
        return low + share * (high - low)

    @cached_property
    def _points(self) -> list[Tensor]:
        return [torch.tensor(axis, dtype=torch.float64) for axis in self.axes]

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {"axes": [list(axis) for axis in self.axes], "ns": self.ns.tolist()}

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> Grid:
        """The inverse of ``to_json``; raises KeyError, TypeError or ValueError on anything else."""
        axes = tuple(tuple(axis) for axis in value_at(record, "axes", list))
        ns = torch.tensor(record["ns"], dtype=torch.float64)
        if ns.shape != tuple(map(len, axes)) or not bool((ns > 0).all() & ns.isfinite().all()):
            raise ValueError("times that do not fit their grid")
        if not all(isinstance(place, int) for axis in axes for place in axis) or any(
            list(axis) != sorted(set(axis)) or not axis for axis in axes
        ):
            raise ValueError("a grid whose points do not ascend")
        return Grid.measured(axes, ns)


Grids = Mapping[str, Grid]
"""By the name of a form, or `CHANNELS`."""


@dataclass(frozen=True, eq=False)
class FormTimes:
    """Times of one layer in its forms: a `DirectionTimes`."""

    grids: Grids
    scale: float = 1.0
    """Batches of the grids in a batch: a large one may run in pieces."""
    multiple: int = 1
    """Components are filled up to it where the layer is deployed."""
    _seen: dict[Ranks, Tensor] = field(default_factory=dict, repr=False)

    def of(self, ranks: Ranks) -> Tensor:
        """Nanoseconds, int64, of the form with these ranks: 0-d, or of ranks ``[M]`` as many."""
        if isinstance(ranks.rank_in, Tensor) or isinstance(ranks.rank_out, Tensor):
            return self._of(ranks)
        if ranks not in self._seen:
            self._seen[ranks] = self._of(ranks)
        return self._seen[ranks]

    def _of(self, ranks: Ranks) -> Tensor:
        places = [torch.as_tensor(rank) for rank in (ranks.rank_in, ranks.rank_out) if rank is not None]
        if ranks.separable:
            places = [(places[0] + self.multiple - 1) // self.multiple * self.multiple]
        return (self.scale * self.grids[form_name(ranks)].at(*places)).round().long()


@dataclass(frozen=True, eq=False)
class WidthTimes:
    """Times of one dense layer with fewer channels: a `ChannelTimes`."""

    grid: Grid
    """Over inputs and outputs; over outputs alone where each channel is by itself."""
    scale: float = 1.0
    _seen: dict[tuple[int, int], int] = field(default_factory=dict, repr=False)

    def of(self, inputs: int, outputs: int) -> int:
        """Nanoseconds of the layer with so many channels."""
        if (inputs, outputs) not in self._seen:
            places = map(torch.as_tensor, (inputs, outputs)[-len(self.grid.axes) :])
            self._seen[inputs, outputs] = round(self.scale * float(self.grid.at(*places)))
        return self._seen[inputs, outputs]
