"""The device that a flag names."""

from __future__ import annotations

import torch

from hybridprune.errors import UserError


def device_of(name: str) -> torch.device:
    """The device that ``--device`` names; UserError if it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"--device {name}: not available ({reason}); use cpu, or cuda:N on a machine with GPUs"
        ) from error
    return device
