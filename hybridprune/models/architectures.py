"""Networks by name: our own, torchvision's, and those of a user's own. Each is a factory's."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from torch import nn

from hybridprune.config.networks import NETWORKS, TORCHVISION
from hybridprune.config.registry import in_a_line
from hybridprune.config.suggest import suggest
from hybridprune.errors import UserError
from hybridprune.models.backbone import Backbone
from hybridprune.models.own_network import READABLE, Factory, check_backbone, checked_factory
from hybridprune.models.torchvision_nets import build_torchvision, check_torchvision_name, torchvision_classifiers


class NotNamed(UserError):
    """A run is of a network that is imported only if the user names it, since the run may be a stranger's."""


@dataclass(frozen=True)
class Architecture:
    """A network by name, and the factory that builds it."""

    name: str
    factory: Factory
    foreign: bool = False
    """Whether it is a user's own."""

    @cached_property
    def gated(self) -> bool:
        """Whether it has residual blocks, hence gates."""
        made = self.factory.func if isinstance(self.factory, partial) else self.factory
        return self.foreign or (isinstance(made, type) and issubclass(made, Backbone))

    @cached_property
    def reads(self) -> tuple[str, ...]:
        """The fields of a specification that shape the network, beside ``classes``."""
        taken = inspect.signature(self.factory).parameters
        return (*(name for name in READABLE if name in taken), *(("gate",) if self.gated else ()))

    @cached_property
    def needs(self) -> tuple[str, ...]:
        """The fields among `reads` that the factory has no default for."""
        taken = inspect.signature(self.factory).parameters
        return tuple(name for name in self.reads if name in taken and taken[name].default is inspect.Parameter.empty)

    def build(self, classes: int, options: Mapping[str, Any]) -> nn.Module:
        """A freshly initialised network; UserError if the options make none, or if a user's own factory fails.

        What stands in no option is what the factory has by default.
        """
        given = {name: options[name] for name in self.reads if name != "gate" and name in options}
        if not self.foreign:
            return self.factory(classes=classes, **given)
        source = f"--network {self.name}"
        try:
            net = self.factory(classes=classes, **given)
        except UserError:
            raise
        except Exception as error:  # whatever somebody else's code does
            raise UserError(f"{source}: its factory fails ({in_a_line(error)}); mend it") from error
        check_backbone(net, source)
        return net


def architecture(name: str) -> Architecture:
    """The network called ``name``; UserError, listing what there is, for another name.

    Nothing is imported because a name says so: ``module:factory`` may stand in a stranger's run. See `allow`.
    """
    module, _, rest = name.partition(":")
    if module == TORCHVISION and rest:
        check_torchvision_name(rest)
        return Architecture(name, partial(build_torchvision, rest))
    if name not in NETWORKS:
        known = [own for own in NETWORKS if not NETWORKS.imports(own)]
        if ":" not in name and is_network(f"{TORCHVISION}:{name}"):
            twin = f"{name}-gated"
            gated = f", or {twin}, which has gates" if twin in NETWORKS else ""
            raise UserError(f"--network {name}: is torchvision's; give --network {TORCHVISION}:{name}{gated}")
        raise UserError(
            f"--network {name}: must be one of {', '.join(known)} or torchvision:NAME"
            + (suggest(name.lower(), known) or "; one of your own is module:factory")
        )
    if NETWORKS.imports(name) and name not in NETWORKS.added:
        raise NotNamed(
            f"network {name}: is imported only if you name it; a command is given --network {name}, in Python call "
            f'hybridprune.networks.allow("{name}")'
        )
    factory = checked_factory(NETWORKS.load(name, "--network"), f"--network {name}")
    return Architecture(name, factory, foreign=name not in NETWORKS.built_in)


def allow(name: str, source: str = "--network") -> None:
    """Let runs of this network be read, since the user has named it: a ``module:factory`` is imported.

    Raises UserError, which names ``source``, if there is no such network or its factory cannot be called.
    """
    if NETWORKS.imports(name):
        NETWORKS.added[name] = checked_factory(NETWORKS.load(name, source), f"{source} {name}")
    architecture(name)


def is_network(name: object) -> bool:
    """Whether ``name`` names a network, or has the form ``module:factory``."""
    if not isinstance(name, str):
        return False
    module, _, rest = name.partition(":")
    return rest in torchvision_classifiers() if module == TORCHVISION else name in NETWORKS


def gated_networks() -> list[str]:
    """The names of our own networks that have residual blocks, hence gates."""
    return [name for name in NETWORKS.built_in if architecture(name).gated]
