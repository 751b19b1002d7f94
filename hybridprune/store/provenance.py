"""Software and hardware that a result came from."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from hybridprune.precision import fp32_precisions
from hybridprune.version import __version__


def versions() -> dict[str, str]:
    """Versions of this package, of Python and of the libraries that compute."""
    libraries = ("torch", "torchvision", "backpack-for-pytorch", "numpy", "scipy", "gymnasium")
    return {
        "hybridprune": __version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in libraries},
    }


def hardware(device: torch.device) -> dict[str, Any]:
    """The device, the processor's name, the number of threads and, of a GPU, how it computes fp32 products now."""
    found = {"device": str(device), "name": _cpu(), "cpu": _cpu(), "threads": torch.get_num_threads()}
    if device.type != "cuda":
        return found
    products = ", ".join(f"{kind} {how.replace('none', 'ieee')}" for kind, how in fp32_precisions().items())
    return {**found, "name": torch.cuda.get_device_name(device), "fp32": products}


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
