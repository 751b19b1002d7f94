"""Means of what a training step measures, over the steps of an epoch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hybridprune.engine.parallel import average


@dataclass
class StepMeans:
    """Sums over the steps so far, each weighted by its batch, and their number.

    They stay on the device: to read one makes the host wait for all that the device has still to do.
    """

    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, metrics: Mapping[str, Tensor], weight: float) -> None:
        """Add a step's metrics (0-d), the first of which must be there in every step."""
        one = torch.ones_like(next(iter(metrics.values())))
        for name, value in {**metrics, "steps": one}.items():
            value = value.double() if weight == 1 else value.double() * weight
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def join(self) -> None:
        """Make the sums those of all processes; again and again does no harm."""
        average(list(self.sums.values()))

    def read(self) -> dict[str, float]:
        """The means, by name."""
        steps = float(self.sums["steps"])
        return {name: float(total) / steps for name, total in self.sums.items() if name != "steps"}
