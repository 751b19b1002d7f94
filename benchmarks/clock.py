"""Timing arms beside each other."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def median_seconds(arms: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 1) -> dict[str, float]:
    """The median time of every arm over ``rounds``; the arms take turns, ``warm_up`` more rounds come first."""
    times: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(warm_up + rounds):
        for name, run in arms.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(each[warm_up:]) for name, each in times.items()}
