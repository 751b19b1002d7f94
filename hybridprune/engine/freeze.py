"""Parameters that a training leaves as they are."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from torch import nn

from hybridprune.models.factored import FactoredLayer, form


def rotation_parameters(net: nn.Module) -> frozenset[str]:
    """Names of the weights that rotate in and out of the factored layers of ``net``; biases are not among them.

    Nor are the factors of separable layers: they are no bases.
    """
    return frozenset(
        f"{layer}.{side}.weight" if layer else f"{side}.weight"
        for layer, module in net.named_modules()
        if isinstance(module, FactoredLayer) and not form(module).separable
        for side in ("rotate_in", "rotate_out")
        if not isinstance(getattr(module, side), nn.Identity)
    )


@contextmanager
def frozen_parameters(net: nn.Module, names: Collection[str]) -> Iterator[None]:
    """Inside, the parameters called ``names`` get no gradient; AttributeError if ``net`` has no such parameter."""
    before = [(parameter, parameter.requires_grad) for parameter in map(net.get_parameter, names)]
    try:
        for parameter, _ in before:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)
