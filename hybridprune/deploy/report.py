"""What deploying did to a network, layer by layer and block by block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hybridprune.measure.latency import Latency


@dataclass(frozen=True)
class Choice:
    """What was chosen among alternatives, by the clock."""

    chosen: str
    before: str
    """What it was."""
    latencies: Mapping[str, Latency]

    @staticmethod
    def fastest(latencies: Mapping[str, Latency], before: str) -> Choice:
        """The arm of the least median, the first among equals."""
        return Choice(min(latencies, key=lambda name: latencies[name].median_ms), before, latencies)

    @property
    def saved_ms(self) -> float:
        """By how much the median fell."""
        return self.latencies[self.before].median_ms - self.latencies[self.chosen].median_ms

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        times = {name: latency.to_json() for name, latency in self.latencies.items()}
        return {"chosen": self.chosen, "before": self.before, "latencies": times}


@dataclass(frozen=True)
class DeployReport:
    """What `deploy` did."""

    batch: int
    device: str
    folded: Mapping[str, str]
    """BatchNorm (or another scaling) -> the layer that it was folded into."""
    kept: tuple[str, ...]
    """BatchNorms that could not be folded."""
    forms: Mapping[str, Choice]
    """Of each factored layer."""
    blocks: Mapping[str, Choice]
    """Of each gated block, by its number: gather or blend, at its ``rates``."""
    rates: tuple[float, ...]
    """Expected execution rates of the gated blocks."""
    macs_before: float
    """Expected, of one image, gates counted."""
    macs_after: float
    params_before: int
    params_after: int

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            "batch": self.batch,
            "device": self.device,
            "folded": dict(self.folded),
            "kept": list(self.kept),
            "forms": {name: choice.to_json() for name, choice in self.forms.items()},
            "blocks": {name: choice.to_json() for name, choice in self.blocks.items()},
            "rates": list(self.rates),
            "macs_before": self.macs_before,
            "macs_after": self.macs_after,
            "params_before": self.params_before,
            "params_after": self.params_after,
        }

    def __str__(self) -> str:
        lines = [f"batch {self.batch} on {self.device}; medians in ms"]
        lines += [f"  {layer}: {name} folded in" for name, layer in self.folded.items()]
        lines += [f"  {name}: stays, nothing to fold it into" for name in self.kept]
        for kind, choices in (("", self.forms), ("block ", self.blocks)):
            for name, choice in choices.items():
                times = ", ".join(f"{each} {latency.median_ms:.4f}" for each, latency in choice.latencies.items())
                lines.append(f"  {kind}{name}: {choice.before} -> {choice.chosen} ({times})")
        lines.append(f"  {_change('expected MACs', self.macs_before, self.macs_after)}")
        lines.append(f"  {_change('parameters', self.params_before, self.params_after)}")
        return "\n".join(lines)


def _change(what: str, before: float, after: float) -> str:
    return f"{what} {before:,.0f} -> {after:,.0f}"
