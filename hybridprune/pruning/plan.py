"""From scores to a plan: all directions of all layers are ranked once and cut at a ratio or at a budget (pure)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hybridprune.pruning.forms import ConvShape, Ranks


@dataclass(frozen=True)
class Candidate:
    """What the plan knows of one layer: its shape, its present form and its directions' scores, descending."""

    name: str
    shape: ConvShape
    form: Ranks
    in_scores: Tensor
    out_scores: Tensor


@dataclass(frozen=True)
class LayerPlan:
    """One layer's future form; a side without a rotation keeps all of its directions."""

    name: str
    ranks: Ranks


@dataclass(frozen=True)
class Budget:
    """Upper bounds on the backbone's MACs and parameters; None: unbounded."""

    macs: float | None = None
    params: float | None = None


class InfeasibleBudget(ValueError):
    """The budget lies below what the limit on each side allows; carries the reachable floor."""

    def __init__(self, macs: int, params: int) -> None:
        super().__init__(f"the reachable floor is {macs} MACs and {params} parameters")
        self.macs = macs
        self.params = params


@dataclass(frozen=True)
class Cut:
    """All candidates' scores in one ascending order, the cut being how many of the lowest are removed."""

    candidates: Sequence[Candidate]
    other_macs: int
    """MACs of the backbone outside the candidates."""
    other_params: int
    limit: float
    """Largest share of one side's channels that may be cut."""
    normalize: bool
    """Whether each layer's scores are scaled to sum 1 first."""
    allow_increase: bool
    """Whether a layer's parameters may grow."""

    @property
    def directions(self) -> int:
        """Number of directions of all layers, on both sides."""
        return sum(len(c.in_scores) + len(c.out_scores) for c in self.candidates)

    def at_ratio(self, ratio: float) -> list[LayerPlan]:
        """Remove the lowest ``ratio`` of all directions, as far as the limit allows."""
        order = self._order()
        return self._plan(order, min(round(ratio * self.directions), len(order)))

    def at_budget(self, budget: Budget) -> list[LayerPlan]:
        """Remove as few directions as meet the budget; raises InfeasibleBudget if none do."""
        order = self._order()

        def met(removed: int) -> bool:
            macs, params = self.cost(self._plan(order, removed))
            return (budget.macs is None or macs <= budget.macs) and (budget.params is None or params <= budget.params)

        removed = _first(met, len(order))
        if removed is None:
            raise InfeasibleBudget(*self.cost(self._plan(order, len(order))))
        return self._plan(order, removed)

    def cost(self, plan: Sequence[LayerPlan]) -> tuple[int, int]:
        """The backbone's MACs and parameters under a plan."""
        shapes: Mapping[str, ConvShape] = {c.name: c.shape for c in self.candidates}
        macs = self.other_macs + sum(shapes[p.name].macs(p.ranks) for p in plan)
        params = self.other_params + sum(shapes[p.name].params(p.ranks) for p in plan)
        return macs, params

    def _order(self) -> list[tuple[int, int]]:
        """(candidate, side) of every direction that may go, ascending by score; side 0 is the input."""
        entries: list[tuple[float, int, int]] = []
        for index, c in enumerate(self.candidates):
            total = float(c.in_scores.sum()) if self.normalize else 1.0
            for side, scores, channels in (
                (0, c.in_scores, c.shape.in_channels),
                (1, c.out_scores, c.shape.out_channels),
            ):
                assert bool((scores.diff() <= 0).all()), f"{c.name}: scores must descend"
                least = max(1, math.ceil((1 - self.limit) * channels - 1e-9))
                removable = scores[min(least, len(scores)) :]
                entries += [(value / (total or 1.0), index, side) for value in removable.flip(0).tolist()]
        return [(index, side) for _, index, side in sorted(entries, key=lambda entry: entry[0])]

    def _plan(self, order: Sequence[tuple[int, int]], removed: int) -> list[LayerPlan]:
        cuts = torch.zeros(len(self.candidates), 2, dtype=torch.int64)
        if removed:
            where = torch.tensor(order[:removed])
            cuts.index_put_((where[:, 0], where[:, 1]), torch.ones(removed, dtype=torch.int64), accumulate=True)
        return [self._form(c, int(a), int(b)) for c, (a, b) in zip(self.candidates, cuts.tolist(), strict=True)]

    def _form(self, c: Candidate, cut_in: int, cut_out: int) -> LayerPlan:
        if cut_in == cut_out == 0:
            return LayerPlan(c.name, c.form)  # untouched, whatever other form might be cheaper
        kept = Ranks(len(c.in_scores) - cut_in, len(c.out_scores) - cut_out)
        full = Ranks(
            None if kept.rank_in == c.shape.in_channels else kept.rank_in,
            None if kept.rank_out == c.shape.out_channels else kept.rank_out,
        )
        return LayerPlan(c.name, c.shape.cheapest(full, None if self.allow_increase else c.shape.params(c.form)))


def _first(met: Callable[[int], bool], last: int) -> int | None:
    """The smallest n in [0, last] with ``met(n)``, for a monotone ``met``; None if there is none."""
    if not met(last):
        return None
    low, high = -1, last
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if met(middle) else (middle, high)
    return high
