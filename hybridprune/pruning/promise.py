"""The promise of a plan: the cost that it told beforehand, held against the cut network's."""

from __future__ import annotations

from hybridprune.errors import RunFailed
from hybridprune.pruning.budget.space import Cost


class BrokenPromise(RunFailed):
    """A network costs something else than the plan by which it was cut: an error of this package, and no result."""


def check_promise(promised: Cost, found: Cost) -> None:
    """Raise `BrokenPromise` unless MACs and parameters are what the plan said; time is for the clock to say."""
    if promised[:2] != found[:2]:
        raise BrokenPromise(
            f"internal error: the plan promised {promised.macs:,} MACs and {promised.params:,} parameters, and the cut "
            f"network has {found.macs:,} and {found.params:,}; nothing was kept, please report this with the network"
        )
