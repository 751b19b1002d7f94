"""Random number generators that claim to be a device's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

_PLAIN = torch.Generator


class ClaimedGenerator(torch.Generator):
    """One that claims to be a device's and draws what the CPU's would."""

    kind: str

    def __new__(cls, device: torch.device | str = "cpu") -> ClaimedGenerator:
        made = super().__new__(cls, "cpu")  # type: ignore[call-arg]
        made.kind = torch.device(device).type
        return made

    def __init__(self, device: torch.device | str = "cpu") -> None:
        """Nothing is left to do."""


def draws_elsewhere(arguments: Iterable[Any], device: str) -> str | None:
    """The kind of device of a generator among the arguments, if it is another one."""
    for each in arguments:
        if isinstance(each, _PLAIN) and (kind := getattr(each, "kind", "cpu")) != device:
            return kind
    return None
