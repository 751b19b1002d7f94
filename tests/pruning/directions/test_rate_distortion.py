"""Rates and distortion of whole layers against the enumeration of all that could be chosen."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from scipy.spatial import ConvexHull

from hybridprune.models.edits import FactorEdit
from hybridprune.pruning.budget import greedy
from hybridprune.pruning.budget.space import Budget, Cost, InfeasibleBudget, Space, pick
from hybridprune.pruning.directions import rate_distortion
from hybridprune.pruning.directions.layer_forms import ConvShape
from hybridprune.pruning.directions.rate_distortion import cut_at_budget, cut_at_ratio
from hybridprune.pruning.directions.space import Choices
from tests.pruning.random_curvature import cells, expected_loss, random_importance, random_space, source, toy_space

FACTORED = (
    FactorEdit("backbone.blocks.0.conv1", 6, 7),
    FactorEdit("backbone.blocks.1.conv1", 5, None),
    FactorEdit("backbone.blocks.2.projection.0", None, 20),
    FactorEdit("backbone.classifier", 12, None),
)
SHAPES = {
    "a": ConvShape(5, 4, 9, 64, 64, False),
    "b": ConvShape(4, 6, 9, 64, 16, True),
    "c": ConvShape(6, 5, 1, 4, 4, False),
}
KINDS = ("macs", "params")


def tiny_space(seed: int, **options: bool) -> Space:
    draw = source(seed)
    return toy_space(
        SHAPES, {n: random_importance(s.out_channels, s.in_channels, draw) for n, s in SHAPES.items()}, **options
    )


def all_plans(space: Space) -> Iterator[tuple[Cost, float]]:
    """Cost and expected loss of every number of directions of every layer."""
    per_layer = []
    for cell in cells(space):
        options = set()
        for kept in itertools.product(
            *(range(least, full + 1) for least, full in zip(cell.least, cell.full, strict=True))
        ):
            ranks = cell.ranks(kept)
            left = [full if rank is None else rank for rank, full in zip(ranks[:2], cell.full, strict=True)]
            options.add((cell.cost(kept), float(cell.losses[left[1], left[0]])))
        per_layer.append(options)
    for chosen in itertools.product(*per_layer):
        cost = space.other
        for part, _ in chosen:
            cost = cost.plus(part)
        yield cost, sum(loss for _, loss in chosen)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_is_the_optimum_on_the_convex_hull_and_near_it_elsewhere(seed: int, kind: str) -> None:
    space, side = tiny_space(seed), KINDS.index(kind)
    best: dict[int, float] = {}
    for cost, loss in all_plans(space):
        best[cost[side]] = min(loss, best.get(cost[side], loss))
    points = sorted(best.items())
    hull = [points[i] for i in ConvexHull(points).vertices]
    floor, whole = points[0], points[-1]
    # The lower left part: from the cheapest to the first without a loss.
    lossless = min(cost for cost, loss in points if loss < 1e-12)
    lower = [
        (cost, loss)
        for cost, loss in sorted(hull)
        if cost <= lossless and loss <= floor[1] - (floor[1] / (lossless - floor[0])) * (cost - floor[0]) + 1e-12
    ]
    assert len(lower) > 4
    for cost, loss in lower:
        kept = cut_at_budget(space, Budget(**{kind: cost}))
        assert space.cost(kept)[side] <= cost
        assert expected_loss(space, kept) == pytest.approx(loss, rel=1e-9, abs=1e-12)
    for share in (0.95, 0.8, 0.7, 0.6, 0.5, 0.4):
        budget = share * whole[0]
        if budget < floor[0]:
            continue
        kept = cut_at_budget(space, Budget(**{kind: budget}))
        assert space.cost(kept)[side] <= budget
        optimum = min(loss for cost, loss in points if cost <= budget)
        # Duality: at worst that of the next point of the hull.
        bound = next(loss for cost, loss in reversed(lower) if cost <= budget)
        assert optimum - 1e-12 <= expected_loss(space, kept) <= bound + 1e-12


@pytest.mark.parametrize("order", greedy.ORDERS)
@pytest.mark.parametrize("edits", [(), FACTORED])
@pytest.mark.parametrize("kind", KINDS)
def test_never_loses_more_than_greedy(kind: str, edits: tuple[FactorEdit, ...], order: str) -> None:
    """In a network of some size; in a tiny one, few choices fill the budget well."""
    for seed in range(2):
        space = random_space(depth=14, width=16, edits=edits, seed=seed)
        whole = space.cost(space.everything())[KINDS.index(kind)]
        for share in (0.9, 0.75, 0.5, 0.25):
            budget = Budget(**{kind: share * whole})
            theirs = greedy.cut_at_budget(space, budget, greedy.ORDERS[order])
            ours = cut_at_budget(space, budget)
            assert budget.allows(space.cost(ours))
            assert expected_loss(space, ours) <= expected_loss(space, theirs) + 1e-12


@pytest.mark.parametrize("share", [0.75, 0.5, 0.25])
@pytest.mark.parametrize("kind", KINDS)
def test_a_budget_is_hit_within_one_percent(kind: str, share: float) -> None:
    space, side = random_space(depth=20, width=16), KINDS.index(kind)
    budget = share * space.cost(space.everything())[side]
    spent = space.cost(cut_at_budget(space, Budget(**{kind: budget})))[side]
    assert 0.99 * budget <= spent <= budget


@pytest.mark.parametrize("cut", [cut_at_budget, partial(greedy.cut_at_budget, order=greedy.importance)])
def test_ranks_in_multiples_meet_a_budget(cut: Callable[[Space, Budget], list[int]]) -> None:
    space = random_space(depth=20, width=16, multiple=8)
    whole = space.cost(space.everything()).macs
    kept = cut(space, Budget(macs=0.5 * whole))
    assert 0.97 * 0.5 * whole <= space.cost(kept).macs <= 0.5 * whole
    cut_layers = 0
    for cell in cells(space):
        for rank, full in zip(cell.ranks(pick(cell, kept))[:2], cell.full, strict=True):
            assert rank is None or rank % 8 == 0 or rank == full
            cut_layers += rank is not None
    assert cut_layers > 5


@pytest.mark.parametrize("edits", [(), FACTORED])
@pytest.mark.parametrize("allow_increase", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_networks_cost_is_never_above_the_budget(kind: str, allow_increase: bool, edits) -> None:  # type: ignore[no-untyped-def]
    """Of the network that comes out, whose layers are in their cheapest forms, not of what the search had in mind."""
    for seed in range(3):
        space = random_space(edits=edits, seed=seed, allow_increase=allow_increase)
        whole = space.cost(space.everything())[KINDS.index(kind)]
        for percent in range(20, 100, 10):
            budget = Budget(**{kind: whole * percent / 100})
            assert budget.allows(space.cost(cut_at_budget(space, budget)))


def test_of_two_budgets_both_are_kept() -> None:
    space = random_space(depth=20, width=16)
    whole = space.cost(space.everything())
    for macs, params in ((0.6, 0.3), (0.4, 0.9), (0.5, 0.5)):
        budget = Budget(macs * whole.macs, params * whole.params)
        assert budget.macs is not None and budget.params is not None
        spent = space.cost(cut_at_budget(space, budget))
        assert budget.allows(spent)
        assert spent.macs >= 0.99 * budget.macs or spent.params >= 0.99 * budget.params


def test_of_two_budgets_one_does_not_hide_that_the_other_can_be_met() -> None:
    """A tight bound on one of them beside a loose one on the other."""
    for seed in range(3):
        space = tiny_space(seed)
        plans = list(all_plans(space))
        for side, kind in enumerate(KINDS):
            least = min(cost[side] for cost, _ in plans)
            other = min(cost[1 - side] for cost, _ in plans if cost[side] == least)
            budget = Budget(**{kind: least, KINDS[1 - side]: other})
            assert budget.allows(space.cost(cut_at_budget(space, budget)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("edits", [(), FACTORED])
def test_an_unreachable_budget_names_a_floor_that_can_be_reached(kind: str, edits: tuple[FactorEdit, ...]) -> None:
    space, side = random_space(edits=edits, limit=0.5), KINDS.index(kind)
    with pytest.raises(InfeasibleBudget) as error:
        cut_at_budget(space, Budget(**{kind: 1}))
    floor = error.value.floor
    assert floor[side] <= greedy_floor(space)[side]
    assert space.cost(cut_at_budget(space, Budget(**{kind: floor[side]})))[side] == floor[side]
    both = Budget(floor.macs, floor.params)
    assert both.allows(space.cost(cut_at_budget(space, both)))
    with pytest.raises(InfeasibleBudget):
        cut_at_budget(space, Budget(**{kind: floor[side] - 1}))


def greedy_floor(space: Space) -> Cost:
    """What is left when all that may go has gone."""
    return space.cost([units.least for units in space.sets])


def test_the_floor_of_two_budgets_can_be_reached() -> None:
    space = random_space(limit=0.5)
    with pytest.raises(InfeasibleBudget) as error:
        cut_at_budget(space, Budget(macs=10, params=1))
    floor = error.value.floor
    assert space.cost(cut_at_budget(space, Budget(floor.macs, floor.params))) == floor


@pytest.mark.parametrize("edits", [(), FACTORED])
def test_a_larger_budget_loses_no_more(edits: tuple[FactorEdit, ...]) -> None:
    space = random_space(edits=edits)
    whole = space.cost(space.everything()).macs
    floor = 0.2
    losses = [
        expected_loss(space, cut_at_budget(space, Budget(macs=whole * (floor + (1 - floor) * step / 20))))
        for step in range(21)
    ]
    assert losses[-1] == 0 < losses[0]
    # What is left over is spent greedily, hence the tolerance.
    assert all(more <= less * 1.01 for less, more in itertools.pairwise(losses))


@pytest.mark.parametrize("edits", [(), FACTORED])
def test_a_budget_above_the_present_cost_changes_nothing(edits: tuple[FactorEdit, ...]) -> None:
    space = random_space(edits=edits)
    assert cut_at_budget(space, Budget(macs=1e12, params=1e12)) == space.everything()


@pytest.mark.parametrize("edits", [(), FACTORED])
@pytest.mark.parametrize("limit", [0.0, 0.3, 0.9])
def test_no_side_loses_more_than_the_limit(limit: float, edits: tuple[FactorEdit, ...]) -> None:
    space = random_space(edits=edits, limit=limit)
    for kept in (cut_at_ratio(space, 1.0), cut_at_budget(space, Budget(params=1.001 * _least_params(space)))):
        for count, units in zip(kept, space.sets, strict=True):
            assert units.least <= count <= len(units.scores)


def _least_params(space: Space) -> int:
    with pytest.raises(InfeasibleBudget) as error:
        cut_at_budget(space, Budget(params=1))
    return error.value.floor.params


@pytest.mark.parametrize("edits", [(), FACTORED])
def test_ratio_is_a_share_of_all_directions(edits: tuple[FactorEdit, ...]) -> None:
    space = random_space(depth=20, width=16) if not edits else random_space(edits=edits)
    full = sum(space.everything())
    assert cut_at_ratio(space, 0.0) == space.everything()
    before = full
    for ratio in (0.1, 0.3, 0.5):
        removed = full - sum(cut_at_ratio(space, ratio))
        # A layer changes its form, and with it a few directions, at once.
        assert ratio * full <= removed <= (ratio + 0.05) * full
        assert full - removed < before
        before = full - removed


def test_what_is_left_of_the_budget_goes_where_it_buys_most() -> None:
    def offer(macs: int, loss: float) -> rate_distortion.Offer:
        kept, costs = torch.tensor([1, 2]), torch.tensor([0, macs])
        losses = torch.tensor([10.0, loss], dtype=torch.float64)
        none = torch.zeros_like(kept)
        return rate_distortion.Offer(Choices(kept, kept, costs, costs, losses, none, none), costs.double(), 1, None)

    # One upgrade that gains 6 for all that is left, or two that gain 5 each for less.
    offers = [offer(10, 4.0), offer(4, 5.0), offer(4, 5.0)]
    assert rate_distortion._fill(offers, [0, 0, 0], Budget(macs=10), Cost(0, 0)) == [0, 1, 1]
    assert rate_distortion._fill(offers, [0, 0, 0], Budget(macs=18), Cost(0, 0)) == [1, 1, 1]
