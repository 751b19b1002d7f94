"""The layers that a user excludes, by patterns of their names: one that matches nothing is a slip of the pen."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from hybridprune.config.suggest import suggest
from hybridprune.errors import UserError
from hybridprune.models.branched import BranchedConv2d
from hybridprune.models.factored import FactoredLayer

SHOWN = 5
"""How many layers a refusal names where none is close."""


def check_excluded(model: nn.Module, patterns: Sequence[str]) -> None:
    """UserError, with names that are close, if a pattern matches no layer of ``model`` that could be cut."""
    kinds = nn.Conv2d | nn.Linear | FactoredLayer | BranchedConv2d
    layers = [name for name, module in model.named_modules() if isinstance(module, kinds)]
    for pattern in patterns:
        if any(fnmatchcase(layer, pattern) for layer in layers):
            continue
        if any(layer.startswith(f"{pattern}.") for layer in layers):
            hint = f", did you mean {pattern}.*?"
        else:
            hint = suggest(pattern, layers) or f"; its layers are {', '.join(layers[:SHOWN])}" + (
                ", ..." if len(layers) > SHOWN else ""
            )
        raise UserError(f"--exclude {pattern}: matches no convolution or linear layer of the network{hint}")
