"""Clocks of networks and of their layers, as far as plans need to know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor, nn

from hybridprune.models.factored import Ranks
from hybridprune.pruning.prunable import PrunableNetwork


class DirectionTimes(Protocol):
    """Times of one layer in each of its forms."""

    def of(self, ranks: Ranks) -> Tensor:
        """Nanoseconds, int64, of the form with these ranks: 0-d, or of ranks ``[M]`` as many."""
        ...


class ChannelTimes(Protocol):
    """Times of one layer with fewer channels."""

    def of(self, inputs: int, outputs: int) -> int:
        """Nanoseconds of the layer with so many channels; a depthwise one is told by its outputs."""
        ...


L = TypeVar("L", covariant=True)


@dataclass(frozen=True)
class NetworkTimes(Generic[L]):
    """Times of a network as it is now, and of its layers in other forms."""

    whole_ns: int
    """Of one batch."""
    layers: Mapping[str, L]
    """By name."""


@dataclass(frozen=True)
class Reading:
    """A network by the clock, beside the dense one in the same run."""

    ns: float
    dense_ns: float

    @property
    def share(self) -> float:
        """The network's share of the dense one's time."""
        return self.ns / self.dense_ns

    def mean(self, other: Reading) -> Reading:
        """The mean times of both; their share lies between both shares."""
        return Reading((self.ns + other.ns) / 2, (self.dense_ns + other.dense_ns) / 2)


class NetworkClock(Protocol):
    """The clock of one engine, for networks that come from one dense one."""

    @property
    def dense_ns(self) -> int:
        """Nanoseconds of one batch of the dense network, deployed."""
        ...

    @property
    def seconds(self) -> float:
        """Seconds that may be spent on timing a few whole networks, beside those for tables."""
        ...

    @property
    def setting(self) -> Mapping[str, Any]:
        """The engine, batch, threads, hardware, and the number of points in the tables."""
        ...

    def directions(self, network: PrunableNetwork, names: Sequence[str]) -> NetworkTimes[DirectionTimes]:
        """The network as it is now, and the layers of these names in their forms."""
        ...

    def channels(self, network: PrunableNetwork, names: Sequence[str]) -> NetworkTimes[ChannelTimes]:
        """The network as it is now, and the layers of these names with fewer channels."""
        ...

    @property
    def block(self) -> int:
        """Channels come in multiples of it: other numbers would take the engine longer than more of them."""
        ...

    def inner_channels(
        self, network: PrunableNetwork, producers: Sequence[str], readers: Sequence[str]
    ) -> Mapping[str, ChannelTimes]:
        """Producers with fewer outputs, and readers with fewer inputs, in blocks, by name."""
        ...

    def read(self, model: nn.Module, *, anew: bool = False) -> Reading:
        """A network of the same kind, deployed, beside the dense one, which is deployed once, or now if ``anew``."""
        ...
