"""Copies of networks that remember something of their last forward pass."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def copied(model: M) -> M:
    """A deep copy of ``model``.

    Tensors that its modules keep as attributes (features, a weight that is computed) may hang on the graph of the last
    forward pass, and torch refuses to copy such: they are copied without the graph.
    """
    remembered = [v for m in model.modules() for v in vars(m).values() if isinstance(v, Tensor) and not v.is_leaf]
    return copy.deepcopy(model, {id(value): value.detach().clone() for value in remembered})
