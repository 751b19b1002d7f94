"""Ways to run a network other than the one that it is in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from hybridprune.models.skipnet import GatedNetwork


def always_on(net: nn.Module) -> nn.Module:
    """The module that gives the logits of ``net`` with every block executed: a gated network's backbone, or itself."""
    return net.backbone if isinstance(net, GatedNetwork) else net


@contextmanager
def kept_modes(net: nn.Module) -> Iterator[None]:
    """Inside, the training mode of ``net`` may change; afterwards each of its modules is in its own again."""
    before = [(module, module.training) for module in net.modules()]
    try:
        yield
    finally:
        for module, training in before:
            module.training = training
