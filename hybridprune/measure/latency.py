"""Timing arms beside each other: they take turns, so that what disturbs the machine disturbs all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import numpy as np
import torch

Arms = Mapping[str, Callable[[], object]]
"""What is to be timed, by name."""
Clock = Callable[[], float]
"""Seconds from any origin."""


@dataclass(frozen=True)
class Latency:
    """Time of one call of an arm, over ``rounds`` measurements."""

    median_ms: float
    lower_quartile_ms: float
    upper_quartile_ms: float
    rounds: int

    def to_json(self) -> dict[str, float]:
        """A plain dictionary."""
        return asdict(self)


Stopwatch = Callable[[Arms], Mapping[str, Latency]]
"""How arms are timed."""


def device_clock(device: torch.device) -> Clock:
    """The wall clock, read when all work given to ``device`` is done."""
    if device.type != "cuda":
        return time.perf_counter

    def read() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return read


def interleaved(arms: Arms, clock: Clock, rounds: int, warm_up: int = 1, at_least: float = 0.0) -> dict[str, Latency]:
    """Median and quartiles of every arm's time over ``rounds``, in which the arms take turns.

    ``warm_up`` more rounds come first. Within a round an arm is called as often as fills ``at_least`` seconds, by the
    last round of the warm-up: a clock does not resolve microseconds.
    """
    assert rounds >= 1 and warm_up >= 1
    times: dict[str, list[float]] = {name: [] for name in arms}
    calls = dict.fromkeys(arms, 1)
    for number in range(warm_up + rounds):
        for name, run in arms.items():
            start = clock()
            for _ in range(calls[name]):
                run()
            seconds = (clock() - start) / calls[name]
            if number >= warm_up:
                times[name].append(seconds)
            elif number == warm_up - 1 and seconds > 0:
                calls[name] = max(1, round(at_least / seconds))
    return {name: _summary(each) for name, each in times.items()}


def stopwatch(device: torch.device, rounds: int = 15, warm_up: int = 2, at_least: float = 0.002) -> Stopwatch:
    """`interleaved` by the clock of ``device``."""
    clock = device_clock(device)
    return lambda arms: interleaved(arms, clock, rounds, warm_up, at_least)


def _summary(seconds: list[float]) -> Latency:
    low, middle, high = np.percentile(np.asarray(seconds) * 1e3, (25, 50, 75)).tolist()
    return Latency(middle, low, high, len(seconds))
