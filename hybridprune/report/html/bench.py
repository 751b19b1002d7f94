"""Measured latencies: ``bench.json`` in a run's folder, where `python -m hybridprune.bench` has been run.

The file holds one object, or a list of them (one for each batch size)::

    {"batch": 32, "device": "cpu", "rows": [
      {"network": "dense", "form": "eager", "median_ms": 9.1, "images_per_second": 3516.5,
       "predicted_speedup": 1.0, "realised_speedup": 1.0}, ...]}

``network`` is ``dense`` (the unpruned ancestor), ``sp``, ``prune`` or ``rl`` (the run itself, or its ancestor of that
stage) or ``deployed`` (the run as deployed); others stand in the table only. ``form`` is ``eager``, ``compiled``,
``onnx``, ... Speed-ups are over the dense network of the same form; null where there is none. Other keys are ignored.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridprune.errors import UserError

FILE = "bench.json"
STAGE_OF = {"dense": "sp", "sp": "sp", "prune": "prune", "rl": "rl"}


@dataclass(frozen=True)
class Measurement:
    """One network in one form at one batch size on one device; a batch takes ``median_ms``."""

    batch: int
    device: str
    network: str
    form: str
    median_ms: float
    images_per_second: float
    predicted_speedup: float | None
    realised_speedup: float | None


def read_bench(folder: Path) -> list[Measurement]:
    """All measurements of a run, none without the file; raises UserError if it does not follow the schema."""
    path = folder / FILE
    if not path.is_file():
        return []
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        tables = data if isinstance(data, list) else [data]
        return [_measurement(table, row) for table in tables for row in table["rows"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise UserError(f"{path}: {reason}; measure again with python -m hybridprune.bench, or remove it") from error


def _measurement(table: dict[str, Any], row: dict[str, Any]) -> Measurement:
    return Measurement(
        batch=_number(table, "batch", int),
        device=str(table["device"]),
        network=str(row["network"]),
        form=str(row["form"]),
        median_ms=_number(row, "median_ms"),
        images_per_second=_number(row, "images_per_second"),
        predicted_speedup=None if row["predicted_speedup"] is None else _number(row, "predicted_speedup"),
        realised_speedup=None if row["realised_speedup"] is None else _number(row, "realised_speedup"),
    )


def _number(record: dict[str, Any], name: str, kind: type | tuple[type, ...] = (int, float)) -> Any:
    value = record[name]
    if isinstance(value, bool) or not isinstance(value, kind) or not 0 < value < math.inf:
        raise ValueError(f"{name} is {value!r}, which is no positive number")
    return value


@dataclass(frozen=True)
class Speed:
    """What the runs of one row measured in one setting of one network: means over the runs."""

    row: int
    device: str
    batch: int
    network: str
    form: str
    runs: int
    median_ms: float
    images_per_second: float
    predicted_speedup: float | None
    realised_speedup: float | None

    @property
    def setting(self) -> tuple[int, str, str]:
        """What may share a plot: batch, form, device."""
        return self.batch, self.form, self.device

    @property
    def realised_share(self) -> float | None:
        """The realised speed-up over the predicted one."""
        if self.predicted_speedup is None or self.realised_speedup is None:
            return None
        return self.realised_speedup / self.predicted_speedup


def average(row: int, runs: Sequence[Sequence[Measurement]]) -> list[Speed]:
    """The row's measurements, those of its runs that agree in device, batch, network and form taken together."""
    groups: dict[tuple[str, int, str, str], list[Measurement]] = defaultdict(list)
    for measured in runs:
        for m in measured:
            groups[m.device, m.batch, m.network, m.form].append(m)
    return [
        Speed(
            row,
            *key,
            runs=len(same),
            median_ms=statistics.mean(m.median_ms for m in same),
            images_per_second=statistics.mean(m.images_per_second for m in same),
            predicted_speedup=_mean([m.predicted_speedup for m in same]),
            realised_speedup=_mean([m.realised_speedup for m in same]),
        )
        for key, same in groups.items()
    ]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known else None
