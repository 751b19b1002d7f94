"""The points of a layer at which the clock is read: so many along each rank as a limit of time allows (pure)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from hybridprune.latency.geometry import Geometry, separates
from hybridprune.latency.table import AXES, CHANNELS
from hybridprune.models.factored import DENSE, Ranks

DENSITIES = (9, 7, 5, 4, 3, 2)
"""Points along an axis, from the finest grid to the coarsest."""
UNIT = 8
"""Points within an axis are multiples of it where there is room: processors compute in such units."""
OVERHEAD_NS = 50_000.0
"""To start the operations of a layer, about."""

Axes = Mapping[str, Sequence[Sequence[int]]]
"""Of each grid, by its name."""


class Point(NamedTuple):
    """A layer whose time is one entry of a grid."""

    grid: str
    place: tuple[int, ...]

    @property
    def ranks(self) -> Ranks:
        """The form, of a point of forms."""
        if self.grid == CHANNELS or not self.place:
            return DENSE
        first, last = self.place[0], self.place[-1]
        if self.grid == "separable":
            return Ranks(first, first, separable=True)
        return Ranks(None if self.grid == "output-sided" else first, None if self.grid == "input-sided" else last)

    def channels(self, geometry: Geometry) -> tuple[int, int]:
        """Inputs and outputs of the layer."""
        if self.grid != CHANNELS:
            return geometry.inputs, geometry.outputs
        return self.place[0], self.place[-1]


def axis(least: int, full: int, count: int, unit: int = UNIT) -> list[int]:
    """Numbers from ``least`` to ``full``, at most ``count``, about evenly spread; all if there are no more."""
    if full - least < count:
        return list(range(least, full + 1))
    steps = (least + (full - least) * place / (count - 1) for place in range(count))
    step = unit if full >= unit * count else 1
    inner = {min(max(round(each / step) * step, least), full) for each in steps}
    return sorted({least, full, *inner})


def form_axes(geometry: Geometry, count: int, multiple: int) -> Axes:
    """The grids of a layer's forms. Components are multiples of ``multiple``, up to as many as cost what it costs."""
    inputs, outputs = axis(1, geometry.inputs, count), axis(1, geometry.outputs, count)
    found: dict[str, Sequence[Sequence[int]]] = {
        "dense": (),
        "input-sided": (inputs,),
        "output-sided": (outputs,),
        "two-sided": (inputs, outputs),
    }
    if separates(geometry):
        most = geometry.macs() // max(1, geometry.macs(Ranks(1, 1, separable=True)))
        least = max(2, multiple)
        full = max(least, math.ceil(most / multiple) * multiple)
        steps = axis(least // multiple, full // multiple, count) if multiple > 1 else axis(least, full, count)
        found["separable"] = ([step * multiple for step in steps],)
    assert all(len(axes) == AXES[name] for name, axes in found.items())
    return found


def channel_axes(geometry: Geometry, count: int, multiple: int) -> Axes:
    """The grid of the layer over its numbers of channels."""
    del multiple
    outputs = axis(1, geometry.outputs, count)
    return {CHANNELS: (outputs,) if geometry.depthwise else (axis(1, geometry.inputs, count), outputs)}


def output_axes(geometry: Geometry, count: int, multiple: int) -> Axes:
    """The grid of the layer over numbers of outputs that are a multiple of ``multiple``, or all."""
    outputs = _blocks(geometry.outputs, count, multiple)
    return {CHANNELS: (outputs,) if geometry.depthwise else ([geometry.inputs], outputs)}


def input_axes(geometry: Geometry, count: int, multiple: int) -> Axes:
    """The grid of the layer over numbers of inputs that are a multiple of ``multiple``, or all."""
    return {CHANNELS: (_blocks(geometry.inputs, count, multiple), [geometry.outputs])}


def _blocks(full: int, count: int, multiple: int) -> list[int]:
    if full < multiple:
        return [full]
    return sorted({*(step * multiple for step in axis(1, full // multiple, count)), full})


def points(axes: Axes) -> Iterator[Point]:
    """All points, grid by grid, the last axis fastest."""
    for grid, each in axes.items():
        for place in itertools.product(*each):
            yield Point(grid, place)


def expected_ns(geometry: Geometry, axes: Axes, dense_ns: float) -> float:
    """Nanoseconds of one call at each point, from those of the dense layer: in proportion to its MACs."""
    whole = geometry.macs()
    total = 0.0
    for point in points(axes):
        share = geometry.macs(point.ranks, *point.channels(geometry)) / whole
        total += dense_ns * share + OVERHEAD_NS
    return total
