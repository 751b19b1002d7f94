"""Channels between two layers or directions of both: against the enumeration of all that could be chosen."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from hybridprune.models.factored import Ranks
from hybridprune.pruning.budget.space import Budget, Cost, InfeasibleBudget, Space, UnitSet, pick
from hybridprune.pruning.channels import ChannelGroup, Member
from hybridprune.pruning.channels.space import ChannelCell
from hybridprune.pruning.directions.inner_channels import InnerCell, Removal
from hybridprune.pruning.directions.layer_forms import ConvShape
from hybridprune.pruning.directions.rate_distortion import cut_at_budget
from hybridprune.pruning.directions.space import FormPrice
from tests.pruning.random_curvature import cells, random_importance, source, toy_space

SHAPES = {
    "a": ConvShape(4, 4, 9, 64, 64, False),
    "b": ConvShape(4, 4, 9, 64, 64, False),
    "c": ConvShape(4, 5, 1, 16, 16, False),
}


@dataclass(frozen=True)
class Starting:
    """A form takes the time of its MACs, and each rotation some more."""

    shape: ConvShape
    rotation: int

    def of(self, ranks: Ranks) -> Tensor:
        rotations = (ranks.rank_in is not None) + (ranks.rank_out is not None)
        return torch.as_tensor(self.shape.macs(ranks)) + rotations * self.rotation


@dataclass(frozen=True)
class Widths:
    """A layer takes the time of its MACs."""

    def of(self, inputs: int, outputs: int) -> int:
        return 9 * 64 * inputs * outputs


def mixed_space(seed: int, rotation: int, channels: float = 1.0, idle: bool = False) -> Space:
    """Three layers; between the first two channels may go, whose losses have this factor.

    ``idle``: some directions are worth nothing.
    """
    draw = source(seed)
    importances = {n: random_importance(x.out_channels, x.in_channels, draw) for n, x in SHAPES.items()}
    if idle:
        for importance in importances.values():
            importance[-2:] = 0.0
    space = toy_space(SHAPES, importances)
    price = FormPrice(0.0, 0.0, 1.0)
    timed = [
        replace(cell, times=Starting(cell.shape, rotation), price=price, allow_increase=True) for cell in cells(space)
    ]
    losses = channels * torch.rand(4, generator=draw, dtype=torch.float64).cumsum(0)
    losses[0] = 0.0
    members = (Member("a", "producer", torch.arange(4)[:, None]), Member("b", "consumer", torch.arange(4)[:, None]))
    parts = [
        ChannelCell(name, (0,), (4,), 4, 4, (inward,), (1 - inward,), 9 * 64, 9, 0, Widths())
        for name, inward in (("a", 0), ("b", 1))
    ]
    units = UnitSet("a:channels", torch.arange(4.0).flip(0), 1)
    group = ChannelGroup("a", 4, False, members)
    inner = InnerCell(group, (len(space.sets),), (0, 1), parts, units, Removal(torch.arange(4), losses))
    other = space.other._replace(ns=500)
    return Space([*space.sets, units], [*timed, inner], other)


def loss_of(space: Space, kept: list[int]) -> float:
    """The expected loss of a plan, in which channels and directions of a pair must not both go."""
    *layers, inner = space.cells
    assert isinstance(inner, InnerCell)
    (channels,) = pick(inner, kept)
    if channels < 4:
        for place in inner.pair:
            assert all(kept[i] == len(space.sets[i].scores) for i in layers[place].sets), "both go"
    found = inner.loss(4 - channels)
    for cell in cells(Space(space.sets, layers, space.other)):
        found += cell.loss(pick(cell, kept))
    return found


def all_plans(space: Space) -> Iterator[tuple[Cost, float]]:
    *layers, inner = space.cells
    assert isinstance(inner, InnerCell)
    whole = space.everything()
    numbers = [range(units.least, len(units.scores) + 1) for units in space.sets]
    for kept in itertools.product(*numbers):
        if kept[-1] < len(space.sets[-1].scores) and any(
            kept[i] < whole[i] for place in inner.pair for i in layers[place].sets
        ):
            continue
        yield space.cost(kept), loss_of(space, list(kept))


@pytest.mark.parametrize(("rotation", "idle"), [(0, False), (20_000, False), (0, True)])
@pytest.mark.parametrize("seed", range(2))
def test_a_plan_is_as_good_as_the_enumeration_says(seed: int, rotation: int, idle: bool) -> None:
    space = mixed_space(seed, rotation, idle=idle)
    best: dict[int, float] = {}
    for cost, loss in all_plans(space):
        best[cost.ns] = min(loss, best.get(cost.ns, loss))
    points = sorted(best.items())
    lower = hull(points)
    whole, floor = space.cost(space.everything()).ns, points[0][0]
    for share in (0.9, 0.75, 0.6, 0.5, 0.4):
        if share * whole < floor:
            with pytest.raises(InfeasibleBudget) as error:
                cut_at_budget(space, Budget(ns=share * whole))
            assert error.value.floor.ns == floor
            continue
        kept = cut_at_budget(space, Budget(ns=share * whole))
        assert space.cost(kept).ns <= share * whole
        optimum = min(loss for ns, loss in points if ns <= share * whole)
        bound = next(loss for ns, loss in reversed(lower) if ns <= share * whole)
        assert optimum - 1e-12 <= loss_of(space, kept) <= bound + 1e-12


def hull(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """The lower convex hull, of ascending points."""
    found: list[tuple[int, float]] = []
    for point in points:
        while len(found) > 1 and _above(found[-2], found[-1], point):
            found.pop()
        found.append(point)
    lowest = min(range(len(found)), key=lambda i: found[i][1])
    return found[: lowest + 1]


def _above(a: tuple[int, float], b: tuple[int, float], c: tuple[int, float]) -> bool:
    return (b[1] - a[1]) * (c[0] - a[0]) >= (c[1] - a[1]) * (b[0] - a[0])


@pytest.mark.parametrize("seed", range(3))
def test_channels_go_where_rotations_are_dear_and_never_beside_directions(seed: int) -> None:
    taken = {}
    for rotation in (0, 20_000):
        space = mixed_space(seed, rotation, channels=0.2)
        kept = cut_at_budget(space, Budget(ns=0.6 * space.cost(space.everything()).ns))
        loss_of(space, kept)
        taken[rotation] = kept[-1]
    assert taken[20_000] < 4
    dear = mixed_space(seed, 0, channels=1e6)
    assert cut_at_budget(dear, Budget(ns=0.6 * dear.cost(dear.everything()).ns))[-1] == 4
