# pyright: strict
"""Results that hold a network, taken wherever a network is."""

from __future__ import annotations

from typing import Protocol

from torch import nn


class HoldsModule(Protocol):
    """A result that holds a module: that of `prune` or `deploy`."""

    @property
    def module(self) -> nn.Module:
        """The network."""
        ...


class HoldsNetwork(Protocol):
    """A result that holds a network: that of `load`."""

    @property
    def network(self) -> nn.Module:
        """The network."""
        ...


AnyNetwork = nn.Module | HoldsModule | HoldsNetwork


def network_of(given: object) -> object:
    """The network that ``given`` holds, if it is a result that holds one; else ``given`` itself, whatever it is."""
    if isinstance(given, nn.Module):  # which may have parts of these names
        return given
    held = (getattr(given, name, None) for name in ("module", "network"))
    return next((each for each in held if isinstance(each, nn.Module)), given)
