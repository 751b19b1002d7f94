"""Costs of compiling on disk, as measured: a file for all networks that one machine trained in one way."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hybridprune.data.cache import default_cache_dir
from hybridprune.engine.compile_trial import Cost, Shape
from hybridprune.json_text import value_at
from hybridprune.store.provenance import hardware, versions
from hybridprune.store.record_cache import RecordCache

FORMAT = 1
_LEAST = {"layers": 1, "seconds": 0, "share": 0}
"""What is kept of a network, and the least it may be."""


def default_cache() -> RecordCache:
    """``compiling`` in the folder where decoded images are kept as well."""
    return RecordCache(default_cache_dir() / "compiling", FORMAT, "networks", "times of compiling")


@dataclass(frozen=True)
class CompileTimes:
    """Costs of compiling ``net``, measured before or expected from those of other networks.

    What was measured of the same layers and batches counts alone, the last time. Else the seconds are those of other
    networks on the same machine, the median per layer times the layers, and the share is the median of theirs.
    """

    net: nn.Module
    place: Mapping[str, Any]
    """What the costs of all networks depend on."""
    cache: RecordCache

    @staticmethod
    def of(net: nn.Module, device: torch.device, **how: str) -> CompileTimes:
        """The costs in trainings on ``device``, ``how`` being what else tells these from other ones."""
        software = {name: version for name, version in versions().items() if name in ("hybridprune", "python", "torch")}
        return CompileTimes(net, {"hardware": hardware(device), "versions": software, **how}, default_cache())

    def expected(self, shape: Shape) -> Cost | None:
        """The cost of compiling for batches of this shape; None if nothing is known."""
        networks = self._known()
        if (own := networks.get(self._name(shape))) is not None:
            return Cost(own["seconds"], own["share"])
        if not networks:
            return None
        per_layer = statistics.median(each["seconds"] / each["layers"] for each in networks.values())
        return Cost(per_layer * self._layers, statistics.median(each["share"] for each in networks.values()))

    def keep(self, shape: Shape, cost: Cost) -> None:
        """Remember a measured cost."""
        own = {"layers": self._layers, **cost._asdict()}
        self.cache.write(self.place, {**self._known(), self._name(shape): own})

    def _known(self) -> dict[str, dict[str, float]]:
        found = self.cache.read(self.place) or {}
        try:
            return {
                name: {key: value_at(each, key, float, low=low) for key, low in _LEAST.items()}
                for name, each in found.items()
            }
        except ValueError:  # broken
            return {}

    @property
    def _layers(self) -> int:
        return max(1, sum(any(True for _ in module.parameters(recurse=False)) for module in self.net.modules()))

    def _name(self, shape: Shape) -> str:
        """Tells the network and its batches from all others: what its layers are, and which of them learn."""
        layers = [(name, type(module).__name__) for name, module in self.net.named_modules()]
        numbers = [(name, list(value.shape)) for name, value in self.net.state_dict().items()]
        learn = [name for name, parameter in self.net.named_parameters() if parameter.requires_grad]
        return hashlib.sha256(json.dumps([layers, numbers, learn, shape]).encode()).hexdigest()[:32]
