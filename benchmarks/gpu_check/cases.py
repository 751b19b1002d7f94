"""The package's own paths, as they are in ``tests/devices``, on the real device and on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch

from benchmarks.device_cases import CASES, Case
from benchmarks.device_cases.case import stage
from benchmarks.gpu_check.check import Check, Found, Setting, against_cpu

TOLERANCES = {"measuring": 2e-3, "modules": 2e-2, "deploying": 1e-2, "notebook": 5e-2}
"""By kind of case. A training adds up rounding, and a decision on its edge may fall to the other side."""
TRAINED = 1e-1
DRAWN = ("pyramidnet", "torchvision")
"""Networks that draw on the device, where generators give other numbers."""
HALVES = ("bf16", "fp16")
MORE: Mapping[str, Case] = {
    "training: sp, compiled": stage("sp", "--compile"),
    "training: sp, TF32": stage("sp", "--tf32"),
    "routing: rl, compiled rollouts": stage("rl", "--compile"),
    "routing: rl, gumbel compiled": stage("rl", "--estimator", "gumbel", "--compile"),
}


def tolerance(name: str) -> float:
    """The distance that the device's numbers may have from the CPU's."""
    wide = 3.0 if any(half in name for half in (*HALVES, "TF32")) else 1.0
    return wide * TOLERANCES.get(name.partition(":")[0], TRAINED)


def _run(setting: Setting, name: str, case: Case) -> Found:
    if any(drawn in name for drawn in DRAWN):
        values = case(setting.device)
        assert all(torch.as_tensor(value).isfinite().all() for value in values.values()), "not finite"
        return Found(note="other random numbers than on the CPU: finite, not compared")
    return against_cpu(case, setting, tolerance(name))


CHECKS: Mapping[str, Check] = {
    name: Check(partial(_run, name=name, case=case), seconds=150 if "compiled" in name else 60)
    for name, case in {**CASES, **MORE}.items()
}
