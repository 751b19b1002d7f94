"""The clock of a budget of time: the dense network deployed, layers by their tables, and whole networks beside it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hybridprune.config import LatencyTarget
from hybridprune.config.registry import Extension
from hybridprune.errors import UserError
from hybridprune.latency.cache import TimeCache, default_folder
from hybridprune.latency.engines import Engine, Running, engine_of, threads_of
from hybridprune.latency.geometry import geometries, shapes
from hybridprune.latency.measure import AT_LEAST, ROUNDS, WARM_UP, TableMaker
from hybridprune.latency.table import CHANNELS, FormTimes, Grids, WidthTimes
from hybridprune.measure.latency import Stopwatch, stopwatch
from hybridprune.precision import full_precision
from hybridprune.processes import count
from hybridprune.pruning.budget.space import NS_PER_MS
from hybridprune.pruning.clock import ChannelTimes, DirectionTimes, NetworkTimes, Reading
from hybridprune.pruning.make_plan import sparsity_of
from hybridprune.pruning.prunable import PrunableNetwork

L = TypeVar("L")
WHOLE_ROUNDS, WHOLE_AT_LEAST = 11, 0.02
"""Of the stopwatch of whole networks: measurements, and seconds of each."""
SHARES = {"forms": 0.8, "output blocks": 0.1, "input blocks": 0.1, "channels": 1.0}
"""Of the seconds for tables, by kind: one budget needs the first three, or the last."""


def stopwatches(device: torch.device) -> tuple[Stopwatch, Stopwatch]:
    """The stopwatch of layers, and that of whole networks."""
    return (
        stopwatch(device, ROUNDS, WARM_UP, AT_LEAST),
        stopwatch(device, WHOLE_ROUNDS, WARM_UP, WHOLE_AT_LEAST),
    )


@dataclass
class DeployedClock:
    """The clock of one engine, for all networks that come from one dense one: a `NetworkClock`."""

    dense: nn.Module
    """Images ``[B, 3, H, W]`` to one tensor."""
    part: Callable[[nn.Module], nn.Module]
    """The part that is deployed, of a network that is cut."""
    image: Tensor
    """``[1, 3, H, W]``"""
    options: LatencyTarget
    engine: Engine
    layers: Stopwatch
    whole: Stopwatch
    cache: TimeCache
    points: int = field(default=0, init=False)
    """Of the tables that were asked for."""

    @staticmethod
    def of(
        dense: nn.Module,
        part: Callable[[nn.Module], nn.Module],
        image: object,
        options: LatencyTarget,
        method: str | Extension,
    ) -> DeployedClock:
        """The clock for a cut by ``method``; UserError where such a cut cannot be timed."""
        if count() > 1:
            raise UserError(
                "--target_latency: several processes disturb each other's clock; start one, or give --target_flops"
            )
        sparsity = sparsity_of(method)
        if sparsity.trainings or sparsity.select is not None:
            raise UserError(
                f"--target_latency: --method {method} trains towards its cut, or selects it, by FLOPs alone; give "
                "--target_flops, or another --method"
            )
        if not isinstance(image, Tensor) or not image.is_floating_point():
            reads = "reads integers" if isinstance(image, Tensor) else f"reads a {type(image).__name__}"
            raise UserError(
                "--target_latency: a network is timed on batches of one tensor of numbers, and this one "
                f"{'is called by a forward of yours' if image is None else reads}; give --target_flops"
            )
        engine = engine_of(options.engine, image.device)
        layers, whole = stopwatches(engine.device)
        return DeployedClock(dense, part, image, options, engine, layers, whole, TimeCache(default_folder()))

    @property
    def dense_ns(self) -> int:
        """Nanoseconds of one batch of the dense network, deployed."""
        return self._dense[1]

    @property
    def seconds(self) -> float:
        """Half of those for tables."""
        return self.options.seconds / 2

    @property
    def setting(self) -> Mapping[str, Any]:
        """The engine, batch, threads, hardware, and the number of points in the tables."""
        with threads_of(self.options.threads):
            place = self.engine.key["hardware"]
        threads, name = place["threads"], place["name"]
        where = {"engine": self.options.engine, "batch": self.options.batch, "threads": threads, "hardware": name}
        return {**where, "points": self.points}

    @property
    def block(self) -> int:
        """The multiple that the engine fills channels up to."""
        return self.engine.multiple

    def directions(self, network: PrunableNetwork, names: Sequence[str]) -> NetworkTimes[DirectionTimes]:
        """The network as it is now, and the layers of these names in their forms."""
        layers = self._layers(network, names, "forms", lambda grids, scale: FormTimes(grids, scale, self.block))
        return NetworkTimes(self._now(network.model), layers)

    def channels(self, network: PrunableNetwork, names: Sequence[str]) -> NetworkTimes[ChannelTimes]:
        """The network as it is now, and the layers of these names with fewer channels."""
        return NetworkTimes(self._now(network.model), self._layers(network, names, "channels", _of_widths))

    def inner_channels(
        self, network: PrunableNetwork, producers: Sequence[str], readers: Sequence[str]
    ) -> Mapping[str, ChannelTimes]:
        """Producers with fewer outputs, and readers with fewer inputs, in blocks, by name."""
        made = self._layers(network, producers, "output blocks", _of_widths)
        return {**made, **self._layers(network, readers, "input blocks", _of_widths)}

    def read(self, model: nn.Module, *, anew: bool = False) -> Reading:
        """A network of the same kind, deployed, beside the dense one, which is deployed once, or now if ``anew``.

        What is deployed depends on the clock as well, which chooses the forms.
        """
        dense, _ = self._dense
        with threads_of(self.options.threads), full_precision(), torch.no_grad():
            if anew:
                dense = self._running(self.dense)
            found = self.whole({"dense": dense.run, "cut": self._running(self.part(model)).run})
        return Reading(found["cut"].median_ms * NS_PER_MS, found["dense"].median_ms * NS_PER_MS)

    @cached_property
    def _dense(self) -> tuple[Running, int]:
        with threads_of(self.options.threads), full_precision(), torch.no_grad():
            running = self._running(self.dense)
            found = self.whole({"dense": running.run})
        return running, max(1, round(found["dense"].median_ms * NS_PER_MS))

    def _running(self, module: nn.Module) -> Running:
        draw = torch.Generator().manual_seed(0)
        images = torch.randn(self.options.batch, *self.image.shape[1:], generator=draw)
        try:
            return self.engine.running(copy.deepcopy(module).float().eval(), images, self.layers)
        except UserError as error:
            told = f"--target_latency: the network cannot be deployed ({error}); give --target_flops"
            raise UserError(told) from error

    def _layers(
        self, network: PrunableNetwork, names: Sequence[str], kind: str, of: Callable[[Grids, float], L]
    ) -> dict[str, L]:
        dense, _ = self._dense
        found = geometries(network.model, lambda: network.run(network.model, network.example))
        counted = {name: found[name] for name in names if name in found and network.counts(name)}
        with threads_of(self.options.threads), full_precision():
            seconds = SHARES[kind] * self.options.seconds
            maker = TableMaker(self.engine, dense.piece, self.layers, seconds, self.cache)
            tables = maker.tables(list(counted.values()), kind)
        self.points += sum(grid.ns.numel() for grids in tables.values() for grid in grids.values())
        scale = self.options.batch / dense.piece
        return {name: of(tables[g], scale) for name, g in counted.items()}

    def _now(self, model: nn.Module) -> int:
        """Nanoseconds of a network, which often is the dense one."""
        if shapes(self.part(model)) == shapes(self.dense):
            return self.dense_ns
        return round(self.read(model).share * self.dense_ns)


def _of_widths(grids: Grids, scale: float) -> WidthTimes:
    return WidthTimes(grids[CHANNELS], scale)
