"""Checks, and how far two devices' numbers may be apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.device_cases import Values

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Setting:
    """The device of a check, and how long it may take."""

    device: torch.device
    seconds: float
    """After so many it is killed."""
    quick: bool = False
    """A rehearsal: as little work as it goes."""
    data_dir: str | None = None
    """Where CIFAR-100 lies."""


@dataclass(frozen=True)
class Found:
    """The findings of a check; raising an error says that it failed."""

    difference: float | None = None
    """From the CPU, the largest over all names: ``|there - here| / |here|``, Euclidean norms."""
    tolerance: float | None = None
    images_per_second: float | None = None
    note: str = ""

    @property
    def status(self) -> str:
        """``ok``, or ``differs`` where the difference exceeds the tolerance."""
        too_far = self.difference is not None and not self.difference <= (self.tolerance or 0.0)
        return "differs" if too_far else "ok"


@dataclass(frozen=True)
class Check:
    """One line of the table."""

    run: Callable[[Setting], Found]
    seconds: float = 60.0
    """After so many it has failed."""
    alone: bool = False
    """Whether nothing else may run meanwhile: it measures time."""
    least: float = field(default=0.0)
    """Seconds that must be left for it to make sense."""


def compared(there: Values, here: Values, tolerance: float) -> Found:
    """The largest difference of two devices' numbers, and where it is."""
    if there.keys() != here.keys():
        raise AssertionError(f"other values: {sorted(there.keys() ^ here.keys())[:3]}")
    worst, where = 0.0, ""
    for name, expected in here.items():
        one, other = (torch.as_tensor(value).double() for value in (there[name], expected))
        if one.shape != other.shape:
            raise AssertionError(f"{name}: {list(one.shape)} instead of {list(other.shape)}")
        if (distance := _distance(one, other)) >= worst:
            worst, where = distance, name
    return Found(worst, tolerance, note=f"at {where}" if worst else "")


def _distance(one: Tensor, other: Tensor) -> float:
    if not torch.equal(one.isfinite(), other.isfinite()):
        return float("inf")
    one, other = one.nan_to_num(0, 0, 0), other.nan_to_num(0, 0, 0)
    if not one.numel():
        return 0.0
    return float((one - other).norm() / other.norm().clamp(min=1e-3))


@contextmanager
def other_kernels(device: torch.device) -> Iterator[None]:
    """Kernels of a CPU that stands for a GPU, whose sums are rounded otherwise: without oneDNN."""
    if device.type != "cpu":
        yield
        return
    onednn: Any = torch.backends.mkldnn
    before, onednn.enabled = onednn.enabled, False
    try:
        yield
    finally:
        onednn.enabled = before


def against_cpu(case: Callable[[torch.device], Values], setting: Setting, tolerance: float) -> Found:
    """A case on the device and on the CPU."""
    here = case(CPU)
    with other_kernels(setting.device):
        there = case(setting.device)
    return compared(there, here, tolerance)


def to_json(name: str, status: str, seconds: float, found: Found | None = None, note: str = "") -> dict[str, Any]:
    """A row."""
    numbers: Mapping[str, Any] = {} if found is None else vars(found)
    return {
        "check": name,
        "status": status,
        "seconds": round(seconds, 1),
        **numbers,
        "note": note or numbers.get("note", ""),
    }
