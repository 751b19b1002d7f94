"""A machine whose every operation takes a time that its shapes say: a clock without noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hybridprune.latency import network_clock
from hybridprune.measure.latency import Arms, Latency

VIEWS = ("view", "permute", "transpose", "reshape", "expand", "slice", "unsqueeze", "squeeze", "t", "split", "detach")


@dataclass
class Machine:
    """Nanoseconds of an operation: ``start`` and, of a convolution or a product, ``each`` a multiply-accumulate.

    It is a stopwatch.
    """

    start: float = 2_000.0
    each: float = 1.0
    depthwise: float = 1.0
    """A multiply-accumulate of a depthwise convolution takes so many times as long."""
    pointwise: float = 1.0
    """One of a 1x1 convolution or a product."""
    wholes: float = 1.0
    """What lies beyond the layers: a factor on all times of networks of more than `LAYERS` operations."""
    crowded: float = 0.0
    """Nanoseconds more of each operation of such a network."""
    timed: list[str] = field(default_factory=list)

    def __call__(self, arms: Arms) -> dict[str, Latency]:
        self.timed += arms
        return {name: Latency(ms, ms, ms, 1) for name, ms in ((name, self.ms(run)) for name, run in arms.items())}

    def ms(self, run: Any) -> float:
        """Milliseconds of one call."""
        with _Watch(self) as watch:
            run()
        if watch.operations > LAYERS:
            return (watch.ns * self.wholes + watch.operations * self.crowded) / 1e6
        return watch.ns / 1e6

    def of(self, kind: str, args: Sequence[Any], out: Any) -> float:
        """Nanoseconds of one operation."""
        if kind in VIEWS:
            return 0.0
        weight: Tensor | None = None
        if "convolution" in kind or kind in ("conv2d", "linear"):
            weight = args[1]
        if weight is not None and weight.ndim == 4:
            groups = args[6] if kind == "conv2d" and len(args) > 6 else args[-1]
            pointwise = self.pointwise if weight.shape[2:] == (1, 1) else 1.0
            factor = self.depthwise if isinstance(groups, int) and groups > 1 else pointwise
            return self.start + factor * self.each * out.numel() * weight[0].numel()
        if weight is not None:
            return self.start + self.pointwise * self.each * out.numel() * weight.shape[1]
        if kind in ("addmm", "mm", "bmm"):
            first = args[1] if kind == "addmm" else args[0]
            return self.start + self.pointwise * self.each * out.numel() * first.shape[-1]
        return self.start + 0.1 * (out.numel() if isinstance(out, Tensor) else 0)


LAYERS = 8


class _Watch(TorchDispatchMode):
    def __init__(self, machine: Machine) -> None:
        super().__init__()
        self.machine, self.ns, self.operations = machine, 0.0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        kind = func._schema.name.partition("::")[2].rstrip("_")
        self.ns += self.machine.of(kind, args, out)
        self.operations += kind not in VIEWS
        return out


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    """The machine by which all budgets of time are measured inside of a test, and a cache of its own."""
    found = Machine()
    monkeypatch.setattr(network_clock, "stopwatches", lambda device: (found, found))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return found


def settle(model: torch.nn.Module, images: Tensor) -> torch.nn.Module:
    """``model`` in eval mode, its BatchNorms used to the images."""
    with torch.no_grad():
        for _ in range(math.ceil(math.log(0.01) / math.log(0.9))):
            model.train()(images)
    return model.eval()
