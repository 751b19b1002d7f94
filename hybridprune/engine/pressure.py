"""Pressures: gradients beside the loss's, which drive a training towards sparsity."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import nn

from hybridprune.engine.objective import Objective


class Pressure(Protocol):
    """Adds to the gradients of each step. It is no term of the loss, so mixed precision and compilers do not see it."""

    def add_gradients(self, done: float) -> None:
        """Add to ``.grad`` in place, ``done`` being the share of the training that is behind, in [0, 1).

        Called once a step, before the optimiser's: the gradients are those of the whole batch of all processes, and
        unscaled. All processes must add the same.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """State that a resumed training needs."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a ``state_dict``."""
        ...


@dataclass(frozen=True)
class Step:
    """A step that has just been taken."""

    lr: float
    """Its learning rate."""
    done: float
    """The share of the training that is over with it, in (0, 1]."""
    trial: Callable[[], AbstractContextManager[None]]
    """Inside, the network has taken one step more, on the same batch and without pressure, from where its weights are
    then; afterwards its weights, buffers and momenta are those of before."""


@dataclass(frozen=True)
class Drive:
    """A pressure, and how the parameters that it works on are optimised."""

    pressure: Pressure
    lr_factors: Mapping[str, float] = field(default_factory=dict)
    """Learning rate of a parameter over that of the others, by name."""
    undecayed: Collection[str] = ()
    """Names of the parameters without weight decay."""
    metrics: Callable[[], Mapping[str, float]] = dict
    """What is worth logging after each epoch."""
    after_step: Callable[[Step], object] | None = None
    """Called after each step of the optimiser; it may change the weights. All processes must do the same."""
    around: Callable[[Objective], Objective] | None = None
    """The objective that takes the place of the training's own, for example the mean of several passes of it."""


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]],
    drive: Drive | None,
    factor: float = 1.0,
    lr_factors: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """The parameters as an optimiser's groups, each with ``factor``: its learning rate over the common one.

    ``lr_factors`` are further ones, by name, the same for all parts of a layer. Those that neither these nor a drive
    name are the first group, which may be empty. Each layer that ``lr_factors`` name has a group of its own, whatever
    the factor is: a training that is resumed, whose weights give other ones, has the same groups.
    """
    further = lr_factors or {}
    groups: dict[tuple[str, float, bool], list[nn.Parameter]] = {("", 1.0, True): []}
    factors = {"": 1.0}
    for name, parameter in named:
        layer = name.rsplit(".", 2)[0] if name in further else ""
        factors[layer] = further.get(name, 1.0)
        driven = 1.0 if drive is None else drive.lr_factors.get(name, 1.0)
        decays = drive is None or name not in drive.undecayed
        groups.setdefault((layer, driven, decays), []).append(parameter)
    return [
        {"params": parameters, "factor": factor * factors[layer] * driven, **({} if decays else {"weight_decay": 0.0})}
        for (layer, driven, decays), parameters in groups.items()
    ]
