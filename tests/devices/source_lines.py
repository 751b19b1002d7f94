"""The line of our code from which a call comes, for messages."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import hybridprune

PACKAGE = Path(hybridprune.__file__).parent
HERE = Path(__file__).parent


def line() -> str:
    """The innermost line of our package that is being run, as ``file:line (function)``.

    Without one it is the innermost that is neither torch's nor this harness's, by the file's name alone.
    """
    frame: types.FrameType | None = sys._getframe(1)
    found = "?"
    while frame is not None:
        code, path = frame.f_code, Path(frame.f_code.co_filename)
        if PACKAGE in path.parents:
            return f"{path.relative_to(PACKAGE.parent)}:{frame.f_lineno} ({code.co_qualname})"
        harness = path.parent == HERE and not path.name.startswith("test_")
        if found == "?" and not harness and "torch" not in path.parts and "contextlib" not in path.name:
            found = f"{path.name}:{frame.f_lineno} ({code.co_qualname})"
        frame = frame.f_back
    return found


def function() -> str | None:
    """The function of our package that is being run, as ``file (function)``."""
    place, _, name = line().partition(" ")
    return f"{place.partition(':')[0]} {name}" if place.startswith(f"{PACKAGE.name}/") else None
