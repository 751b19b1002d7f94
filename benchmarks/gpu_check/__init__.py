"""Checks that need a real GPU: ``benchmarks/gpu_check.sh``."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.gpu_check import cases, published, steps, throughput, together
from benchmarks.gpu_check.check import Check

CHECKS: Mapping[str, Check] = {
    **steps.CHECKS,
    **cases.CHECKS,
    **together.CHECKS,
    **throughput.CHECKS,
    **published.CHECKS,
}
"""By name, in the order in which they are begun."""
