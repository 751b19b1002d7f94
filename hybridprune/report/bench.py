"""Measured latencies: ``bench.json`` in a run's folder, where ``hybridprune bench`` has been run.

The file holds one object, or a list of them (one for each batch size)::

    {"batch": 32, "device": "cpu", "threads": 2, "hardware": {"name": "AMD EPYC 7B13", ...}, "rows": [
      {"network": "dense", "form": "eager", "median_ms": 9.1, "images_per_second": 3516.5,
       "predicted_speedup": 1.0, "realised_speedup": 1.0}, ...]}

``network`` is ``dense`` (the unpruned ancestor, every block executed), ``sp``, ``prune`` or ``rl`` (the run itself, or
its ancestor of that stage), ``deployed`` (the run as deployed) or ``dense deployed``; others stand in the page's table
only. ``form`` is ``eager``, ``compiled``, ``onnx``, ``openvino``, ... Speed-ups are over the dense network of the same
form; null where there is none. ``threads`` and ``hardware`` may be missing; other keys are ignored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridprune.errors import UserError
from hybridprune.json_text import read_json, short

FILE = "bench.json"


@dataclass(frozen=True)
class Measurement:
    """One network in one form at one batch size in one place; a batch takes ``median_ms``."""

    batch: int
    place: str
    """Device, its name and the number of threads: what latencies must have in common to be compared."""
    network: str
    form: str
    median_ms: float
    images_per_second: float
    predicted_speedup: float | None
    realised_speedup: float | None


def read_bench(folder: Path) -> tuple[Measurement, ...]:
    """All measurements of a run, none without the file; raises UserError if it does not follow the schema."""
    path = folder / FILE
    if not path.is_file():
        return ()
    try:
        data = read_json(path)
        tables = data if isinstance(data, list) else [data]
        return tuple(_measurement(table, row) for table in tables for row in table["rows"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise UserError(f"{path}: {reason}; measure again with hybridprune bench, or remove it") from error


def _measurement(table: dict[str, Any], row: dict[str, Any]) -> Measurement:
    return Measurement(
        batch=_number(table, "batch", int),
        place=_place(table),
        network=str(row["network"]),
        form=str(row["form"]),
        median_ms=_number(row, "median_ms"),
        images_per_second=_number(row, "images_per_second"),
        predicted_speedup=None if row["predicted_speedup"] is None else _number(row, "predicted_speedup"),
        realised_speedup=None if row["realised_speedup"] is None else _number(row, "realised_speedup"),
    )


def _place(table: dict[str, Any]) -> str:
    parts = [str(table["device"])]
    hardware = table.get("hardware")
    if isinstance(hardware, dict) and "name" in hardware:
        parts.append(str(hardware["name"]))
    if "threads" in table:
        threads = _number(table, "threads", int)
        parts.append("1 thread" if threads == 1 else f"{threads} threads")
    return " ".join(", ".join(parts).split())


def _number(record: dict[str, Any], name: str, kind: type | tuple[type, ...] = (int, float)) -> Any:
    value = record[name]
    if isinstance(value, bool) or not isinstance(value, kind) or not 0 < value < math.inf:
        raise ValueError(f"{name} is {short(value)}, which is no positive number")
    return value
