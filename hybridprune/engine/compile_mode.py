"""The choices of ``--compile``: nothing of a training, all of it, or what pays."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from hybridprune.engine.compile_times import CompileTimes
from hybridprune.engine.compile_trial import Trial
from hybridprune.engine.compiler import Switch, compiles
from hybridprune.measure.latency import device_clock


def arranged(
    mode: str, switch: Switch, device: torch.device, known: Callable[[], CompileTimes], left: int
) -> Trial | None:
    """The trial that decides about ``switch`` in a training with ``left`` steps to go.

    There is one with the mode ``auto`` only: ``on`` compiles the switch at once, and ``off`` never.
    """
    if mode == "on" and compiles(device):
        switch.compile()
    if mode != "auto":
        return None
    return Trial(switch, left, known(), device_clock(device), partial(compiles, device))
