"""Pruning methods of your own: what one is made of, and how it gets a name.

A method is a `ChannelMethod` (a score ``[channels]`` of each group of channels) or a `DirectionMethod` (a basis of each
layer's weight and what each direction is worth). ``examples/my_method.py`` has one of each. It is used in three ways:

- ``hybridprune.prune(..., method=METHOD)``, or by its name after ``register``;
- ``main_prune.py --method module:NAME``, a file of the working directory or an installed module;
- by name everywhere, if an installed package declares it: ``[project.entry-points."hybridprune.methods"]`` and
  ``name = "module:NAME"`` in its pyproject.toml.
"""

from __future__ import annotations

from hybridprune.config.methods import METHODS
from hybridprune.curvature import LayerFactors, SecondMoments
from hybridprune.pruning import methods
from hybridprune.pruning.channels import ChannelGroup
from hybridprune.pruning.channels.scores import Statistics
from hybridprune.pruning.channels.scores.statistics import sum_over
from hybridprune.pruning.directions.decomposition import Decomposition
from hybridprune.pruning.method import ChannelMethod, DirectionMethod, Method

__all__ = [
    "ChannelGroup",
    "ChannelMethod",
    "Decomposition",
    "DirectionMethod",
    "LayerFactors",
    "Method",
    "SecondMoments",
    "Statistics",
    "find",
    "names",
    "register",
    "sum_over",
]


def find(method: str | Method) -> Method:
    """The method of a name or of ``module:Name``, or a method itself; UserError if there is none."""
    return methods.find(method, "method")


def register(name: str, method: Method) -> None:
    """Let ``name`` mean ``method`` in this process, wherever a method is named.

    Raises UserError if the name is taken or cannot be one, or if ``method`` is no method.
    """
    METHODS.add(name, find(method))


def names() -> list[str]:
    """The names of all methods: our own, registered ones and those of installed packages."""
    return list(METHODS)
