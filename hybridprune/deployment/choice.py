"""A choice by the clock."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from hybridprune.measure.latency import Latency


@dataclass(frozen=True)
class Choice:
    """The choice among alternatives that were timed."""

    chosen: str
    before: str
    """What it was."""
    latencies: Mapping[str, Latency]

    @staticmethod
    def fastest(latencies: Mapping[str, Latency], before: str) -> Choice:
        """The one of the least median, the first among equals."""
        return Choice(min(latencies, key=lambda name: latencies[name].median_ms), before, latencies)

    def among(self, names: Collection[str]) -> Choice:
        """The fastest of only these, all times kept; the same choice where none of them was timed."""
        found = {name: latency for name, latency in self.latencies.items() if name in names}
        return replace(self, chosen=Choice.fastest(found, self.before).chosen) if found else self

    def __str__(self) -> str:
        times = ", ".join(f"{name} {latency.median_ms:.4f}" for name, latency in self.latencies.items())
        return f"{self.before} -> {self.chosen} ({times})"
