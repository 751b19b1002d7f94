"""Networks of your own for the three stages: what a gated backbone is made of, and how it gets a name.

It is a `Backbone`: ``stem``, ``blocks`` and ``head``. Each block is a `ResidualBlock`, with ``skip``, ``execute`` and
``out_channels``; gates decide between the two, image by image. A factory gives it: a function that takes ``classes``
and, as it likes, ``depth``, ``width`` and the other options of `READABLE` by their names; a depth or a width that is
not given is its own default. It is called again wherever a run is read, also under ``torch.device("meta")``, and has to
give the same layers for the same arguments.
``examples/my_network.py`` is one. It is used in three ways:

- ``main_sp.py --network module:factory``, a file of the working directory or an installed module, and so on in the
  other stages and commands: a run folder, which may be a stranger's, imports nothing by itself;
- from Python, ``allow("module:factory")`` before such a run is loaded, or a name of its own after ``register``;
- by name everywhere, if an installed package declares it: ``[project.entry-points."hybridprune.networks"]`` and
  ``name = "module:factory"`` in its pyproject.toml.

What has no residual blocks needs none of this: `hybridprune.prune` takes any module.
"""

from __future__ import annotations

from hybridprune.config.networks import NETWORKS
from hybridprune.models import architectures
from hybridprune.models.backbone import Backbone, ResidualBlock
from hybridprune.models.own_network import READABLE, Factory, checked_factory

__all__ = ["READABLE", "Backbone", "Factory", "ResidualBlock", "allow", "names", "register"]


def register(name: str, factory: Factory) -> None:
    """Let ``name`` mean the network of ``factory`` in this process, wherever a network is named.

    Raises UserError if the name is taken or cannot be one, or if ``factory`` cannot be called as they are.
    """
    NETWORKS.add(name, checked_factory(factory, f"network {name}"))


def allow(name: str) -> None:
    """Import ``module:factory``, and let runs whose network has this name be read in this process.

    Raises UserError if it cannot be imported, or if the factory cannot be called as they are.
    """
    architectures.allow(name, "network")


def names() -> list[str]:
    """The names of all networks but torchvision's: our own, registered ones and those of installed packages."""
    return list(NETWORKS)
