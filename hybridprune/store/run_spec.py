"""``spec.json`` of a run: what its network is, checked field by field, since it may be a stranger's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hybridprune.config import SCRIPTS
from hybridprune.config.options import LARGEST_INPUT
from hybridprune.json_text import numbers_at, short, texts_at, value_at
from hybridprune.models.cascade_spec import CascadeSpec, spec_from_json
from hybridprune.models.spec import NetworkSpec

FORMAT = 1
SMALLEST_STD = 1e-6
LARGEST_PIXEL = 1e6


@dataclass(frozen=True)
class RunSpec:
    """The specification of a run: its network, and what that expects as input."""

    stage: str
    run_id: str
    network: NetworkSpec | CascadeSpec
    class_names: tuple[str, ...]
    input_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dataset: str
    dataset_digest: str
    centre_crop: bool = False
    """How images of other sizes become the input: their middle is cut out, or both sides are scaled to the size."""

    @property
    def gated(self) -> NetworkSpec:
        """The network, where it is one with gated blocks; ValueError if it is a cascade."""
        if isinstance(self.network, CascadeSpec):
            raise ValueError("it is a cascade, whose members are runs of their own")
        return self.network

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            "format": FORMAT,
            "stage": self.stage,
            "run_id": self.run_id,
            "network": self.network.to_json(),
            "class_names": list(self.class_names),
            "input_size": self.input_size,
            "mean": list(self.mean),
            "std": list(self.std),
            "dataset": self.dataset,
            "dataset_digest": self.dataset_digest,
            "centre_crop": self.centre_crop,
        }

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> RunSpec:
        """The inverse of ``to_json``; raises KeyError, TypeError or ValueError on anything else.

        Fields younger than the record take their defaults.
        """
        if value_at(record, "format", object) != FORMAT:
            raise ValueError(f"format {short(record['format'])}, this version reads {FORMAT}")
        network, names = spec_from_json(record["network"]), texts_at(record, "class_names")
        if len(names) != network.classes:
            raise ValueError(f"class_names are {len(names)} for a network of {network.classes} classes")
        mean = numbers_at(record, "mean", -LARGEST_PIXEL, LARGEST_PIXEL)
        std = numbers_at(record, "std", SMALLEST_STD, LARGEST_PIXEL)
        if not len(mean) == len(std) == 3:
            raise ValueError("mean and std are not three numbers each")
        stage = value_at(record, "stage", str)
        if stage not in SCRIPTS:
            raise ValueError(f"stage is {short(stage)}, none of {', '.join(SCRIPTS)}")
        return RunSpec(
            stage,
            value_at(record, "run_id", str),
            network,
            tuple(names),
            value_at(record, "input_size", int, 1, LARGEST_INPUT),
            tuple(mean),
            tuple(std),
            value_at(record, "dataset", str),
            value_at(record, "dataset_digest", str),
            value_at({"centre_crop": RunSpec.centre_crop, **record}, "centre_crop", bool),
        )
