"""torch.compile, where there is something that compiles."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor
from tqdm import tqdm

from hybridprune.processes import is_first

MANY = 1_000_000
"""More forms of one code than any process compiles."""


class Switch:
    """A network or a function that runs as it is or, once `compile` was called and while it is ``on``, compiled."""

    def __init__(self, run: Callable[..., Any]) -> None:
        self._run = run
        self._compiled = run
        self.on = False

    def __call__(self, *args: Any, **options: Any) -> Any:
        return (self._compiled if self.on else self._run)(*args, **options)

    def compile(self) -> None:
        """Have a compiled form, which is compiled when it is called, and be ``on``."""
        self._compiled = torch.compile(self._run)
        self.on = True


def alone(run: Callable[..., Any]) -> Callable[..., Any]:
    """``run``, a network or a function, compiled when it is called, whatever else was compiled before.

    Of one piece of code torch keeps 8 compiled forms (``torch._dynamo.config.recompile_limit``), and what shapes it has
    met. Networks of one class share both: the ninth would run as it is, and the second for shapes that may vary. So
    ``run`` is called by a function with code and a name of its own. Where it cannot be compiled in one piece, the rest
    is shared all the same: see `unlimited`.
    """

    def own(*args: Any, **options: Any) -> Any:
        return run(*args, **options)

    own.__code__ = own.__code__.replace(co_name=f"own_{uuid4().hex}")
    return torch.compile(own)


def unlimited() -> AbstractContextManager[None]:
    """Inside, torch compiles any number of forms of one piece of code."""
    return torch._dynamo.config.patch(recompile_limit=MANY, accumulated_recompile_limit=MANY)


def obstacle(device: torch.device) -> str | None:
    """Why nothing compiles for ``device``, in a line; None where it does."""
    try:
        torch.compile(_probe)(torch.ones(8, device=device))
    except Exception as error:  # whatever the back end raises
        return f"torch.compile does not work here: {reason(error)}"
    return None


def compiles(device: torch.device) -> bool:
    """Whether there is a compiler for ``device`` that works; one line says why not."""
    found = obstacle(device)
    if found is not None:
        say(f"warning: --compile is left out, {found}")
    return found is None


def compiled(run: Callable[..., Any], device: torch.device) -> Any:
    """``run``, a network or a function, compiled or, where nothing compiles for ``device``, as it is."""
    return torch.compile(run) if compiles(device) else run


def say(line: str) -> None:
    """Tell the user, once, beside any progress bar."""
    if is_first():
        tqdm.write(line, file=sys.stderr)


def reason(error: Exception) -> str:
    """An error in one line: the first one of its message; and the next one as well where it only announces that."""
    lines = str(error).strip().splitlines()[:2]
    return " ".join(lines if lines and lines[0].endswith(":") else lines[:1]) or type(error).__name__


def _probe(x: Tensor) -> Tensor:
    return (x + 1).relu().sum()
