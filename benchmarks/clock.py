"""Timing arms beside each other."""

from __future__ import annotations

import time

from hybridprune.measure.latency import Arms, interleaved


def median_seconds(arms: Arms, rounds: int, warm_up: int = 1) -> dict[str, float]:
    """The median time of every arm over ``rounds``; the arms take turns, ``warm_up`` more rounds come first."""
    found = interleaved(arms, time.perf_counter, rounds, warm_up)
    return {name: latency.median_ms / 1e3 for name, latency in found.items()}
