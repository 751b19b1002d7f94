"""Operating points of a run's gates: ``sweep.json`` in its folder, where ``hybridprune curve`` has been run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hybridprune.errors import UserError
from hybridprune.json_text import read_json, value_at

FILE = "sweep.json"
Split = Literal["test", "validation"]
Curve = list[tuple[float, float]]
"""Expected FLOPs of an image and accuracy, by rising FLOPs."""


@dataclass(frozen=True)
class Sweep:
    """The curves of one policy, on validation images and, where they were asked for, on test images."""

    validation: Curve
    test: Curve | None


def read_sweep(folder: Path) -> Sweep | None:
    """The curves of a run, None without the file; raises UserError if it is none of ``hybridprune curve``."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        points = value_at({"points": read_json(path)}, "points", list)
        tested = all(isinstance(point, dict) and "test_accuracy" in point for point in points)
        return Sweep(_curve(points, ""), _curve(points, "test_") if tested else None)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {error}; run hybridprune curve again, or remove it") from error


def _curve(points: list[Any], prefix: str) -> Curve:
    if not points:
        raise ValueError("holds no points")
    return sorted(
        (value_at(point, f"{prefix}flops", float, low=0), value_at(point, f"{prefix}accuracy", float, 0, 1))
        for point in points
    )
