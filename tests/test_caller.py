"""Warnings stand at the user's line, through whatever decorators."""

from __future__ import annotations

import types
from collections.abc import Callable

import pytest
import torch

from hybridprune.ambient import isolated
from hybridprune.caller import warn_caller


def inside(function: Callable[[], None]) -> Callable[[], None]:
    """The function as if it stood in the package."""
    return types.FunctionType(function.__code__, {**function.__globals__, "__name__": "hybridprune.somewhere"})


def warn() -> None:
    warn_caller("told", RuntimeWarning)


@pytest.mark.parametrize(
    "decorate", [lambda f: f, isolated(), torch.no_grad(), lambda f: isolated()(torch.no_grad()(f))]
)
def test_a_warning_stands_where_the_package_was_called(decorate: Callable[..., Callable[[], None]]) -> None:
    called = decorate(inside(warn))
    with pytest.warns(RuntimeWarning, match="^told$") as told:
        called()
    code = test_a_warning_stands_where_the_package_was_called.__code__
    assert told[0].filename == __file__ and told[0].lineno > code.co_firstlineno
