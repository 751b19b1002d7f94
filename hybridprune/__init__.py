# pyright: strict
"""hybridprune: static and dynamic pruning of convolutional networks.

A module of your own
    ``prune`` gives a smaller copy of it (``Pruned``, with its ``PrunedSpec``). ``cascade`` lets confident images stop
    at the smaller of two networks (``Cascaded``). ``save`` writes either, and ``restore`` puts it together again.
    ``accuracy`` says what share of a loader's images a network gets right.
A finished run
    ``load`` gives its network (a ``Model``), and ``predict`` says what it sees in images (a ``Prediction`` each).
Shipping
    ``deploy`` gives a copy of either that computes the same, faster (``Deployed``).
Accounting
    ``count`` gives the MACs and parameters of a gated network (``NetworkCost``), ``effective_sparsity`` the share of
    ``count_weights`` that no path from input to output reads.
Notebooks
    ``train`` and ``prune_finetune`` of `hybridprune.bn_scale` prune by the scales of BatchNorms, in memory.
What goes wrong
    ``UserError`` is a mistake that the caller can mend, ``RunFailed`` a run that went astray, each told in one line.

>>> model = hybridprune.load("results/default/...-rl-seed0")
>>> hybridprune.predict(model, ["cat.png"])

What is listed here is imported when it is first asked for: ``import hybridprune`` alone takes no time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hybridprune.version import __version__

if TYPE_CHECKING:
    from hybridprune.api.accuracy import accuracy
    from hybridprune.api.bn_scale import prune_finetune, train
    from hybridprune.api.cascade import cascade
    from hybridprune.api.cascaded import Cascaded
    from hybridprune.api.cost import count
    from hybridprune.api.inference import Model, Prediction, load, predict
    from hybridprune.api.prune import prune
    from hybridprune.api.pruned import Pruned, PrunedSpec
    from hybridprune.api.save import restore, save
    from hybridprune.deployment import Deployed, deploy
    from hybridprune.errors import RunFailed, UserError
    from hybridprune.measure.cost import NetworkCost
    from hybridprune.measure.effective import count_weights, effective_sparsity

__all__ = [  # noqa: RUF022 (grouped by what one does)
    # A module of your own
    "prune",
    "Pruned",
    "PrunedSpec",
    "save",
    "restore",
    "accuracy",
    "cascade",
    "Cascaded",
    # A finished run
    "load",
    "Model",
    "predict",
    "Prediction",
    # Shipping
    "deploy",
    "Deployed",
    # Accounting
    "count",
    "NetworkCost",
    "count_weights",
    "effective_sparsity",
    # Notebooks
    "train",
    "prune_finetune",
    # What goes wrong
    "UserError",
    "RunFailed",
    # The package
    "__version__",
]
# The imports above once more, for when the program runs; a test holds the two against each other.
_HOMES = {
    "hybridprune.api.accuracy": ("accuracy",),
    "hybridprune.api.bn_scale": ("prune_finetune", "train"),
    "hybridprune.api.cascade": ("cascade",),
    "hybridprune.api.cascaded": ("Cascaded",),
    "hybridprune.api.cost": ("count",),
    "hybridprune.api.inference": ("Model", "Prediction", "load", "predict"),
    "hybridprune.api.prune": ("prune",),
    "hybridprune.api.pruned": ("Pruned", "PrunedSpec"),
    "hybridprune.api.save": ("restore", "save"),
    "hybridprune.deployment": ("Deployed", "deploy"),
    "hybridprune.errors": ("RunFailed", "UserError"),
    "hybridprune.measure.cost": ("NetworkCost",),
    "hybridprune.measure.effective": ("count_weights", "effective_sparsity"),
}


def __getattr__(name: str) -> Any:
    if name in ("methods", "networks"):
        return import_module(f"hybridprune.{name}")
    for home, names in _HOMES.items():
        if name in names:
            value = getattr(import_module(home), name)
            globals()[name] = value  # found at once from now on
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
