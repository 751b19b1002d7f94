"""torch.compile, where there is something that compiles."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from hybridprune.processes import is_first


def compiled(run: Callable[..., Any], device: torch.device) -> Any:
    """``run`` compiled or, where the compiler of ``device`` is missing or broken, as it is, which one line says.

    It is a network or a function.
    """
    try:
        torch.compile(_probe)(torch.ones(8, device=device))
    except Exception as error:  # whatever the back end raises
        if is_first():
            reason = _first_sentence(str(error)) or type(error).__name__
            tqdm.write(f"warning: --compile is left out, torch.compile does not work here: {reason}", file=sys.stderr)
        return run
    return torch.compile(run)


def _probe(x: Tensor) -> Tensor:
    return (x + 1).relu().sum()


def _first_sentence(message: str) -> str:
    """The first line; and the next one as well where it only announces that."""
    lines = message.strip().splitlines()[:2]
    return " ".join(lines if lines and lines[0].endswith(":") else lines[:1])
