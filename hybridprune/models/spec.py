"""What a network is: a registry name, its arguments and the edits made to it. Enough to rebuild it exactly."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hybridprune.models.factored import FactorEdit, apply_edits
from hybridprune.models.resnet import ResNet
from hybridprune.models.skipnet import GatedNetwork

BACKBONES: Mapping[str, Callable[[int, int, int], ResNet]] = {"resnet": ResNet}
"""Registry: name -> builder from depth, width and number of classes."""


@dataclass(frozen=True)
class NetworkSpec:
    """A gated network's architecture."""

    network: str
    depth: int
    width: int
    classes: int
    edits: tuple[FactorEdit, ...] = ()

    def build(self) -> GatedNetwork:
        """A freshly initialised network of this architecture."""
        net = GatedNetwork(BACKBONES[self.network](self.depth, self.width, self.classes))
        apply_edits(net, self.edits)
        return net

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            "network": self.network,
            "depth": self.depth,
            "width": self.width,
            "classes": self.classes,
            "edits": [edit.to_json() for edit in self.edits],
        }

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> NetworkSpec:
        """The inverse of ``to_json``; raises KeyError, TypeError or ValueError on anything else."""
        if record["network"] not in BACKBONES:
            raise ValueError(f"unknown network {record['network']!r}")
        for name in ("depth", "width", "classes"):
            if not isinstance(record[name], int):
                raise TypeError(f"{name} is {record[name]!r}, not a whole number")
        edits = tuple(FactorEdit.from_json(edit) for edit in record["edits"])
        return NetworkSpec(record["network"], record["depth"], record["width"], record["classes"], edits)
