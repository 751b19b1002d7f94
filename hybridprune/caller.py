"""Warnings that stand where the user has called the package, however deep in it they are given."""

from __future__ import annotations

import sys
import warnings

_PASSED_OVER = ("hybridprune", "contextlib", "torch")
"""This package, and what its decorators are made with."""


def warn_caller(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line of the nearest caller outside of the package."""
    frame, level = sys._getframe(), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _PASSED_OVER:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
