"""Widths that grow with the layers' importance until the budget is spent (pure).

PEEL (Hou et al. 2021, Network Pruning via Resource Reallocation) starts from a backbone whose widths are too small for
the budget, and hands what is left over to the informative layers in one round: ``c(t) = min(C, round_to(c0 + t I C))``,
``t`` as large as the budget allows. AdaPruner (Liu et al. 2021, Adaptive Channel Pruning and Effective Weights
Inheritance) has no backbone, and the importance is that of a whole block: ``c(t) = min(C, round_to(t I C))``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hybridprune.pruning.budget.greedy import cut_at_budget, cut_at_ratio, importance
from hybridprune.pruning.budget.space import Budget, InfeasibleBudget, Space

BISECTIONS = 60


@dataclass(frozen=True)
class Growth:
    """Rules by which widths grow. PEEL leaves open what the backbone is and how much of the budget it takes."""

    round_to: int = 1
    """Widths are multiples of this, but for the limits of a group, which need not be."""
    backbone: str = "uniform"
    """uniform (the same share of every group) or global-gamma (what one ranking of all scores leaves)."""
    pool: float = 0.3
    """Share of the budget that the backbone leaves to be handed out."""

    def rounded(self, width: float) -> int:
        """The nearest multiple, the larger of two."""
        return self.round_to * math.floor(width / self.round_to + 0.5)

    def next(self, width: int) -> int:
        """The next larger multiple."""
        return self.round_to * (width // self.round_to + 1)


@dataclass(frozen=True)
class Goal:
    """The goal of a growth: a budget or, without one, the share of all units that go."""

    ratio: float
    budget: Budget | None

    def allows(self, space: Space, kept: Sequence[int]) -> bool:
        """Whether so many units of each set are few enough."""
        if self.budget is not None:
            return self.budget.allows(space.cost(kept))
        units = sum(space.everything())
        return sum(kept) <= units - round(self.ratio * units)

    def scaled(self, share: float) -> Goal:
        """The goal that leaves this share of what this one leaves."""
        if self.budget is None:
            return Goal(1 - share * (1 - self.ratio), None)
        bounds = (None if bound is None else share * bound for bound in self.budget.bounds)
        return Goal(self.ratio, Budget(*bounds))


def peel(space: Space, goal: Goal, growth: Growth) -> list[int]:
    """Widths at or above the backbone's; what may be spent is spent, up to one step of any set.

    A set's importance is the mean of its scores, over the sum of all sets'. A backbone that the limits do not let be
    as small as it should is as small as they let it be.

    Raises InfeasibleBudget if nothing that the limits allow meets the goal.
    """
    check_floor(space, goal)
    return grown(space, initial_widths(space, goal, growth), mean_scores(space), goal, growth)


def adapruner(space: Space, goal: Goal, growth: Growth) -> list[int]:
    """Widths in proportion to the importance of their block: the mean score of all of its units.

    A block is told by names, see `block_of`. Raises InfeasibleBudget if nothing that the limits allow meets the goal.
    """
    check_floor(space, goal)
    members: dict[str, list[int]] = {}
    for number, units in enumerate(space.sets):
        members.setdefault(block_of(units.name), []).append(number)
    worth = [0.0] * len(space.sets)
    for sets in members.values():
        total = sum(float(space.sets[i].scores.sum()) for i in sets)
        mean = total / sum(len(space.sets[i].scores) for i in sets)
        for i in sets:
            worth[i] = mean
    return grown(space, [0] * len(space.sets), worth, goal, growth)


def block_of(name: str) -> str:
    """The block of a layer, or the layer itself where there is none: its name up to the first run of numbers.

    ``layer1.0.conv2`` belongs to ``layer1.0``, ``features.1.0.block.2.fc1`` to ``features.1.0``. A residual stream
    belongs to the block in which it begins, since its group is named after its first layer.
    """
    parts = name.split(".")
    numbered = [part.isdigit() for part in parts]
    if True not in numbered:
        return name
    first = numbered.index(True)
    length = next((i for i, number in enumerate(numbered[first:]) if not number), len(parts) - first)
    return ".".join(parts[: first + length])


def mean_scores(space: Space) -> list[float]:
    """Importance of each set."""
    return [float(units.scores.mean()) for units in space.sets]


def initial_widths(space: Space, goal: Goal, growth: Growth) -> list[int]:
    """Widths that leave the pool, as far as the limits allow."""
    assert growth.backbone in ("uniform", "global-gamma"), growth.backbone
    small = goal.scaled(1 - growth.pool)
    full = space.everything()
    if growth.backbone == "uniform":

        def uniform(share: float) -> list[int]:
            return _within(space, [growth.rounded(share * width) for width in full])

        share = _largest(lambda share: small.allows(space, uniform(share)), 1.0)
        return uniform(share)
    try:
        kept = (
            cut_at_ratio(space, small.ratio, importance)
            if small.budget is None
            else cut_at_budget(space, small.budget, importance)
        )
    except InfeasibleBudget:
        kept = [0] * len(full)
    return _within(space, [width // growth.round_to * growth.round_to for width in kept])


def grown(space: Space, start: Sequence[int], worth: Sequence[float], goal: Goal, growth: Growth) -> list[int]:
    """``min(C, round_to(start + t I C))`` with the largest ``t`` that the goal allows; then single steps.

    These come in the order in which a larger ``t`` would have made them, until none is allowed any more.
    """
    full, total = space.everything(), sum(worth)
    slopes = [width * own / total if total > 0 else 0.0 for width, own in zip(full, worth, strict=True)]

    def widths(t: float) -> list[int]:
        # What does not grow is not rounded either: a limit may be no multiple.
        gains = [t * slope for slope in slopes]
        return _within(
            space, [growth.rounded(c + gain) if gain > 0 else c for c, gain in zip(start, gains, strict=True)]
        )

    enough = max((width / slope for width, slope in zip(full, slopes, strict=True) if slope > 0), default=0.0)
    kept = widths(_largest(lambda t: goal.allows(space, widths(t)), enough))
    assert all(now >= before for now, before in zip(kept, _within(space, start), strict=True))

    def due(index: int) -> tuple[float, float]:
        """The ``t`` at which the set takes its next step; without importance the narrowest comes first."""
        missing = growth.next(kept[index]) - growth.round_to / 2 - start[index]
        return missing / slopes[index] if slopes[index] > 0 else math.inf, kept[index] / full[index]

    def wider(index: int) -> list[int]:
        return [*kept[:index], min(growth.next(kept[index]), full[index]), *kept[index + 1 :]]

    def step() -> list[int] | None:
        growing = sorted((i for i, width in enumerate(kept) if width < full[i]), key=due)
        return next((more for more in map(wider, growing) if goal.allows(space, more)), None)

    while more := step():
        kept = more
    return kept


def _largest(allowed: Callable[[float], bool], top: float) -> float:
    """The largest number in [0, top] that is allowed, by bisection; 0 if none is."""
    if allowed(top):
        return top
    low, high = 0.0, top
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if allowed(middle) else (low, middle)
    return low


def _within(space: Space, widths: Sequence[int]) -> list[int]:
    """The widths as far as the limits allow."""
    return [min(max(w, units.least), len(units.scores)) for w, units in zip(widths, space.sets, strict=True)]


def check_floor(space: Space, goal: Goal) -> None:
    """Raise InfeasibleBudget if nothing that the limits allow meets the goal's budget."""
    least = [units.least for units in space.sets]
    if goal.budget is not None and not goal.budget.allows(space.cost(least)):
        raise InfeasibleBudget(space.cost(least))
