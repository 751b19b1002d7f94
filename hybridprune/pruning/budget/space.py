"""The space of all cuts: sets of interchangeable units, and the network's cost without some of them (pure).

Everything here and what follows from it (choices, budgets, numbers of kept units) is on the CPU, whatever the network
is on: the same scores give the same plan everywhere.

A unit is a direction of one side of a layer, or a channel. A method scores units, an allocator decides how many go from
which set, and both see the network only through a ``Space``: one budget search and one accounting for all methods.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

from torch import Tensor

NS_PER_MS = 1_000_000


class Cost(NamedTuple):
    """MACs of one image, parameters and, where there is a clock, the time of a batch."""

    macs: int
    params: int
    ns: int = 0
    """Nanoseconds, as expected of the deployed network: whole numbers, which add up exactly; 0 without a clock."""

    def plus(self, other: Cost) -> Cost:
        """The sum."""
        return Cost(self.macs + other.macs, self.params + other.params, self.ns + other.ns)

    def minus(self, other: Cost) -> Cost:
        """The difference."""
        return Cost(self.macs - other.macs, self.params - other.params, self.ns - other.ns)


class InfeasibleBudget(ValueError):
    """The budget lies below what the limit on each set allows; carries the reachable floor."""

    def __init__(
        self, floor: Cost, left_alone: Mapping[str, str] | None = None, *, gains_nothing: bool = False
    ) -> None:
        super().__init__(f"the reachable floor is {floor.macs} MACs and {floor.params} parameters")
        self.floor = floor
        self.left_alone = left_alone or {}
        """Layers from which nothing can be cut, by name, each with the reason, as far as it is known here."""
        self.gains_nothing = gains_nothing
        """Whether plans were timed, and the ``floor``, the fastest of them, gains nothing that a clock can tell."""

    def of(self, dense: Cost) -> str:
        """The floor, for users: as shares of the dense network and in absolute numbers."""
        time = f"{self.floor.ns / dense.ns:.4f} of the time ({self.floor.ns / NS_PER_MS:.4g} ms), " if dense.ns else ""
        return (
            f"the floor is {time}{self.floor.macs / dense.macs:.4f} of the FLOPs ({2 * self.floor.macs:,}) and "
            f"{self.floor.params / dense.params:.4f} of the parameters ({self.floor.params:,})"
        )


@dataclass(frozen=True)
class Budget:
    """Upper bounds on MACs, parameters and nanoseconds; None: unbounded."""

    macs: float | None = None
    params: float | None = None
    ns: float | None = None

    @staticmethod
    def of(
        target_flops: float | None, target_params: float | None, dense: Cost, target_latency: float | None = None
    ) -> Budget | None:
        """The budget of targets: up to 1 a share of the dense network, else FLOPs (2 x MACs), parameters or ms.

        None if there is no target.
        """
        if target_flops is None and target_params is None and target_latency is None:
            return None
        return Budget(
            None if target_flops is None else target_macs(target_flops, dense.macs),
            None if target_params is None else _absolute(target_params, dense.params, per_unit=1),
            None if target_latency is None else _absolute(target_latency, dense.ns, per_unit=1 / NS_PER_MS),
        )

    def allows(self, cost: Cost) -> bool:
        """Whether a network of this cost is within the budget."""
        return all(bound is None or spent <= bound for spent, bound in zip(cost, self.bounds, strict=True))

    @property
    def bounds(self) -> tuple[float | None, float | None, float | None]:
        """The bounds, in the order of a `Cost`."""
        return self.macs, self.params, self.ns


UNITS = {"target_flops": "FLOPs", "target_params": "parameters", "target_latency": "ms"}
"""Of targets above 1."""


def taken_as(targets: Mapping[str, float | None]) -> str:
    """The hint for targets, by their flags, that look like percent and are not: "50 is taken as 50 FLOPs, ..."."""
    return "".join(
        f"{target:g} is taken as {target:g} {UNITS[flag.removeprefix('--')]}, for {target:g} % give {flag} "
        f"{target / 100:g}; "
        for flag, target in targets.items()
        if target is not None and 1 < target <= 100
    )


def target_macs(target_flops: float, dense_macs: int) -> float:
    """MACs of a FLOPs budget: up to 1 a share of the dense network's, else FLOPs (2 x MACs)."""
    return _absolute(target_flops, dense_macs, per_unit=2)


def _absolute(target: float, dense: int, per_unit: float) -> float:
    return target * dense if target <= 1 else target / per_unit


@dataclass(frozen=True)
class UnitSet:
    """Units of one kind, best first: the directions of one side of a layer, or the channels that belong together."""

    name: str
    scores: Tensor
    """``[n]``, on the CPU, descending: the rise of the loss that removing the unit is expected to cost"""
    least: int
    """How many must stay."""

    def __post_init__(self) -> None:
        assert self.scores.device.type == "cpu", f"{self.name}: plans are made on the CPU"
        assert self.scores.ndim == 1 and bool((self.scores.diff() <= 0).all()), f"{self.name}: scores must descend"
        assert 1 <= self.least <= len(self.scores), f"{self.name}: {self.least} of {len(self.scores)} must stay"

    @property
    def removable(self) -> int:
        """The number of units that may go."""
        return len(self.scores) - self.least


class Cell(Protocol):
    """A part of the network whose cost depends on a few unit sets; cells add up."""

    @property
    def sets(self) -> tuple[int, ...]:
        """The places in ``Space.sets`` of the sets it depends on."""
        ...

    def cost(self, kept: tuple[int, ...]) -> Cost:
        """The cell's cost when so many units of each of its sets are kept."""
        ...

    def relaxed_macs(self, kept: tuple[int, ...]) -> float:
        """MACs of a form in which every removal counts, even where the real form does not change."""
        ...


@dataclass(frozen=True)
class Space:
    """All unit sets of a network, and its cost: ``other`` plus the cells'."""

    sets: Sequence[UnitSet]
    cells: Sequence[Cell]
    other: Cost

    @cached_property
    def cells_of(self) -> list[list[Cell]]:
        """Cells that depend on each set, in the order of the sets."""
        touching: list[list[Cell]] = [[] for _ in self.sets]
        for cell in self.cells:
            for index in cell.sets:
                touching[index].append(cell)
        return touching

    def everything(self) -> list[int]:
        """All units kept."""
        return [len(s.scores) for s in self.sets]

    def floor(self) -> Cost:
        """The network's cost when all is gone that may go."""
        return self.cost([units.least for units in self.sets])

    def cost(self, kept: Sequence[int]) -> Cost:
        """The network's cost when so many units of each set are kept."""
        assert len(kept) == len(self.sets)
        total = self.other
        for cell in self.cells:
            total = total.plus(cell.cost(pick(cell, kept)))
        return total


def pick(cell: Cell, kept: Sequence[int]) -> tuple[int, ...]:
    """The kept numbers of a cell's own sets."""
    return tuple(kept[index] for index in cell.sets)


def least_kept(channels: int, present: int, limit: float) -> int:
    """The units of ``present`` that must stay if at most the share ``limit`` of the layer's channels may ever go.

    It is ``ceil((1 - limit) channels)``, at least 1 and at most ``present``.
    """
    return min(max(1, math.ceil((1 - limit) * channels - 1e-9)), present)
