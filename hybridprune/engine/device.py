"""The device that a flag or an argument names."""

from __future__ import annotations

import torch

from hybridprune.errors import UserError

KINDS = ("cpu", "cuda")


def device_of(name: str | torch.device, option: str = "--device") -> torch.device:
    """The device that ``option`` names, ``auto`` being a GPU if there is one; UserError if it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = check_kind(torch.device(name), option)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        if reason.startswith("Expected one of"):  # and twenty kinds that are of no use here
            reason = "there is no such kind of device"
        raise UserError(
            f"{option} {name}: not available ({reason}); use cpu, or cuda:N on a machine with GPUs"
        ) from error
    return device


def check_kind(device: torch.device, where: str) -> torch.device:
    """``device``; UserError unless it is a CPU or a CUDA GPU: curvature, prices and sums need float64."""
    if device.type not in KINDS:
        raise UserError(f"{where} {device}: not supported, only cpu and cuda are (others may lack float64); use cpu")
    return device
