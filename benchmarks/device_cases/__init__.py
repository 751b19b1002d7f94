"""Cases of what the package does, which run on any device and give numbers that have to be the same on all.

`CASES` maps a name to a function of a device. Each is small: seconds on a CPU. What a case gives has names, is on the
CPU, and depends on the device by rounding alone.
"""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.device_cases import commands, deploying, measuring, modules, notebook, routing, training
from benchmarks.device_cases.case import Case, Values

CASES: Mapping[str, Case] = {
    f"{module.__name__.rpartition('.')[2]}: {name}": case
    for module in (measuring, modules, training, routing, commands, deploying, notebook)
    for name, case in module.CASES.items()
}
"""By name: ``module: case``."""

__all__ = ["CASES", "Case", "Values"]
