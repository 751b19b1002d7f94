"""Tables of times, measured by the clock within a limit of seconds, or found where they were measured before."""

from __future__ import annotations

import time as wall
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

import torch

from hybridprune.latency.cache import TimeCache
from hybridprune.latency.engines import Eager, Engine
from hybridprune.latency.geometry import Geometry
from hybridprune.latency.points import (
    DENSITIES,
    Axes,
    Point,
    channel_axes,
    expected_ns,
    form_axes,
    input_axes,
    output_axes,
    points,
)
from hybridprune.latency.table import Grid, Grids
from hybridprune.measure.latency import Arms, Clock, Stopwatch
from hybridprune.progress_bar import bar
from hybridprune.pruning.budget.space import NS_PER_MS

ROUNDS, WARM_UP, AT_LEAST = 7, 2, 0.001
"""Of the stopwatch of layers: measurements, those before them that do not count, and seconds of each."""
AxesOf = Callable[[Geometry, int, int], Axes]
KINDS: dict[str, AxesOf] = {
    "forms": form_axes,
    "channels": channel_axes,
    "output blocks": output_axes,
    "input blocks": input_axes,
}
"""Kinds of tables: of a layer's forms, and of the dense layer with fewer channels on both sides or on one."""


@dataclass(frozen=True)
class TableMaker:
    """Tables of an engine, measured or read."""

    engine: Engine
    batch: int
    """Images at a time."""
    time: Stopwatch
    seconds: float
    """For all tables of a call, as far as the coarsest grids allow."""
    cache: TimeCache
    now: Clock = wall.perf_counter

    def key(self, geometry: Geometry, kind: str) -> dict[str, Any]:
        """All that the times of a layer depend on."""
        return {**self.engine.key, "batch": self.batch, "kind": kind, "layer": geometry.key()}

    def tables(self, wanted: Sequence[Geometry], kind: str) -> dict[Geometry, Grids]:
        """The table of each geometry. What is not in the cache is measured, as finely as the time allows."""
        distinct = list(dict.fromkeys(wanted))
        found = {each: grids for each in distinct if (grids := self.cache.read(self.key(each, kind))) is not None}
        missing = [each for each in distinct if each not in found]
        if not missing:
            return found
        deadline = self.now() + self.seconds
        begun = self._begun({str(i): (each, Point("dense", ())) for i, each in enumerate(missing)})
        dense, opening = self._times(begun), median(begun.opening)
        costs = [self._seconds(each, kind, DENSITIES[-2], dense[str(i)], opening) for i, each in enumerate(missing)]
        with bar(description="timing layers in their forms", total=len(missing), unit="layer") as shown:
            for i, geometry in enumerate(missing):
                allowed = (deadline - self.now()) * costs[i] / sum(costs[i:])
                fits = (n for n in DENSITIES if self._seconds(geometry, kind, n, dense[str(i)], opening) <= allowed)
                grids = self._measured(geometry, KINDS[kind](geometry, next(fits, DENSITIES[-1]), self.engine.multiple))
                self.cache.write(self.key(geometry, kind), grids)
                found[geometry] = grids
                shown.update()
        return found

    def _seconds(self, geometry: Geometry, kind: str, count: int, dense_ns: float, opening: float) -> float:
        """How long a table of so many points along each axis takes, about, each of them ``opening`` seconds to open."""
        axes = KINDS[kind](geometry, count, self.engine.multiple)
        number = sum(1 for _ in points(axes))
        variants = 2 if isinstance(self.engine, Eager) and geometry.kernel else 1
        each = max(expected_ns(geometry, axes, dense_ns) / 1e9, AT_LEAST * number)
        return (ROUNDS + WARM_UP) * variants * each + opening * number

    def _measured(self, geometry: Geometry, axes: Axes) -> Grids:
        every = list(points(axes))
        times = self._times(self._begun({str(number): (geometry, point) for number, point in enumerate(every)}))
        by_grid: dict[str, list[float]] = {name: [] for name in axes}
        for number, point in enumerate(every):
            by_grid[point.grid].append(times[str(number)])
        return {
            name: Grid.measured(each, torch.tensor(by_grid[name]).double().reshape([len(axis) for axis in each]))
            for name, each in axes.items()
        }

    @torch.no_grad()
    def _begun(self, wanted: dict[str, tuple[Geometry, Point]]) -> _Begun:
        """Each layer, opened in the engine."""
        found = _Begun({}, {}, [])
        # One for all that read as much: at 224 pixels one for each would be gigabytes.
        read: dict[tuple[Geometry, int], torch.Tensor] = {}
        for name, (geometry, point) in wanted.items():
            inputs, outputs = point.channels(geometry)
            channels = outputs if geometry.depthwise else inputs
            if (geometry, channels) not in read:
                read[geometry, channels] = self.engine.input(geometry.images(self.batch, channels))
            before = self.now()
            layer = geometry.layer(point.ranks, inputs, outputs)
            variants: Arms = self.engine.arms(layer, read[geometry, channels])
            found.opening.append(self.now() - before)
            found.of[name] = [f"{name} {variant}" for variant in variants]
            found.arms.update({f"{name} {variant}": run for variant, run in variants.items()})
        return found

    @torch.no_grad()
    def _times(self, begun: _Begun) -> dict[str, float]:
        """Nanoseconds of each layer in its fastest variant; all take turns."""
        times = self.time(begun.arms)
        return {name: min(times[each].median_ms for each in arms) * NS_PER_MS for name, arms in begun.of.items()}


class _Begun(NamedTuple):
    """Layers that are ready to be timed."""

    arms: dict[str, Callable[[], object]]
    of: dict[str, list[str]]
    """The arms of each layer: its variants."""
    opening: list[float]
    """Seconds that it took to open each layer: a compiler's, where the engine has one."""
