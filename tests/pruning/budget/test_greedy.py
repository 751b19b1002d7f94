"""Greedy cuts of real networks with random scores: their order, their accounting, budgets and limits."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridprune.models.edits import FactorEdit
from hybridprune.models.factored import DENSE, Ranks
from hybridprune.pruning.budget.greedy import ORDERS, cut_at_budget, cut_at_ratio, importance, importance_per_flop
from hybridprune.pruning.budget.space import Budget, Cost, InfeasibleBudget, Space
from hybridprune.pruning.directions.layer_forms import ConvShape
from tests.pruning.random_curvature import cells, forms, random_importance, random_space, source, toy_space

FACTORED = (
    FactorEdit("backbone.blocks.0.conv1", 6, 7),
    FactorEdit("backbone.blocks.1.conv1", 5, None),
    FactorEdit("backbone.blocks.2.projection.0", None, 20),
    FactorEdit("backbone.classifier", 12, None),
)
KINDS = ("macs", "params")


def relaxed(space: Space, kept: Sequence[int]) -> int:
    """MACs of the network if every layer had both rotations, whatever is cheapest."""
    total = 0
    for cell in cells(space):
        rank_in, rank_out = (kept[index] for index in cell.sets)
        shape = cell.shape
        total += shape.in_positions * shape.in_channels * rank_in
        total += shape.out_positions * rank_out * (rank_in * shape.kernel_area + shape.out_channels)
    return total


def worst(space: Space, kept: Sequence[int], index: int) -> float:
    """The score that a set loses next."""
    return float(space.sets[index].scores[kept[index] - 1])


def test_importance_removes_the_lowest_score_of_all_that_may_go() -> None:
    space = random_space(edits=FACTORED, limit=0.6)
    kept = space.everything()
    for index in importance(space):
        allowed = [i for i, units in enumerate(space.sets) if kept[i] > units.least]
        assert worst(space, kept, index) == min(worst(space, kept, i) for i in allowed)
        assert index in allowed
        kept[index] -= 1
    assert kept == [units.least for units in space.sets]


def test_importance_per_flop_removes_the_lowest_score_over_what_is_saved() -> None:
    shapes = {
        "a": ConvShape(5, 4, 9, 64, 64, False),
        "b": ConvShape(4, 7, 9, 64, 16, True),
        "c": ConvShape(6, 3, 1, 4, 4, False),
    }
    draw = source(0)
    space = toy_space(shapes, {n: random_importance(s.out_channels, s.in_channels, draw) for n, s in shapes.items()})
    kept = space.everything()

    def price(index: int) -> float:
        fewer = [count - (i == index) for i, count in enumerate(kept)]
        return worst(space, kept, index) / (relaxed(space, kept) - relaxed(space, fewer))

    orders_differ = False
    for index in importance_per_flop(space):
        allowed = [i for i, units in enumerate(space.sets) if kept[i] > units.least]
        assert index in allowed
        assert price(index) == pytest.approx(min(map(price, allowed)), rel=1e-12)
        orders_differ |= worst(space, kept, index) > min(worst(space, kept, i) for i in allowed)
        kept[index] -= 1
    assert kept == [units.least for units in space.sets]
    assert orders_differ


@settings(max_examples=25)
@given(
    st.integers(0, 50), st.floats(0, 1), st.floats(0, 1), st.booleans(), st.booleans(), st.sampled_from([(), FACTORED])
)
def test_more_directions_removed_cost_no_more(
    seed: int, one: float, other: float, normalize: bool, allow_increase: bool, edits: tuple[FactorEdit, ...]
) -> None:
    space = random_space(edits=edits, seed=seed, normalize=normalize, allow_increase=allow_increase)
    less, more = (space.cost(cut_at_ratio(space, ratio, importance)) for ratio in sorted((one, other)))
    assert more.macs <= less.macs


@pytest.mark.parametrize("order", ORDERS.values())
def test_ratio_is_a_share_of_all_directions_of_both_sides(order: object) -> None:
    assert order in (importance, importance_per_flop)
    space = random_space(edits=FACTORED)
    full = sum(space.everything())
    for ratio in (0.0, 1e-9, 0.2, 0.5):
        assert full - sum(cut_at_ratio(space, ratio, order)) == round(ratio * full)  # type: ignore[arg-type]


@pytest.mark.parametrize("order", ORDERS.values())
@pytest.mark.parametrize("share", [0.75, 0.5, 0.25])
@pytest.mark.parametrize("kind", KINDS)
def test_a_budget_is_hit_within_one_percent(kind: str, share: float, order) -> None:  # type: ignore[no-untyped-def]
    space = random_space(depth=20, width=16)
    side = KINDS.index(kind)
    budget = share * space.cost(space.everything())[side]
    spent = space.cost(cut_at_budget(space, Budget(**{kind: budget}), order))[side]
    assert 0.99 * budget <= spent <= budget


@pytest.mark.parametrize("order", ORDERS.values())
def test_of_two_budgets_both_are_kept(order) -> None:  # type: ignore[no-untyped-def]
    space = random_space(depth=20, width=16)
    whole = space.cost(space.everything())
    for macs, params in ((0.6, 0.3), (0.4, 0.9)):
        budget = Budget(macs * whole.macs, params * whole.params)
        assert budget.macs is not None and budget.params is not None
        spent = space.cost(cut_at_budget(space, budget, order))
        assert budget.allows(spent)
        assert spent.macs >= 0.99 * budget.macs or spent.params >= 0.99 * budget.params


@pytest.mark.parametrize("order", ORDERS.values())
@pytest.mark.parametrize("edits", [(), FACTORED])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_put_back_is_all_that_still_fits(kind: str, edits: tuple[FactorEdit, ...], order) -> None:  # type: ignore[no-untyped-def]
    """The cut goes no further than the first that meets the budget, and no removed direction could come back."""
    space = random_space(edits=edits)
    side, full = KINDS.index(kind), space.everything()
    path = [full]
    for index in order(space):
        path.append([count - (i == index) for i, count in enumerate(path[-1])])
    costs = [space.cost(kept)[side] for kept in path]
    for share in (0.95, 0.8, 0.5, 0.3):
        budget = share * costs[0]
        first = path[next(step for step, cost in enumerate(costs) if cost <= budget)]
        kept = cut_at_budget(space, Budget(**{kind: budget}), order)
        assert all(ours >= theirs for ours, theirs in zip(kept, first, strict=True))
        assert space.cost(kept)[side] <= budget
        if kind == "macs":  # more directions can have fewer parameters, in another form
            for index in (i for i, count in enumerate(kept) if count < full[i]):
                assert space.cost([count + (i == index) for i, count in enumerate(kept)]).macs > budget


@pytest.mark.parametrize("order", ORDERS.values())
def test_a_budget_above_the_present_cost_changes_nothing(order) -> None:  # type: ignore[no-untyped-def]
    space = random_space(edits=FACTORED)
    assert cut_at_budget(space, Budget(macs=1e12, params=1e12), order) == space.everything()
    assert cut_at_budget(space, Budget(), order) == space.everything()


@pytest.mark.parametrize("order", ORDERS.values())
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("edits", [(), FACTORED])
def test_an_unreachable_budget_names_a_floor_that_can_be_reached(kind: str, edits, order) -> None:  # type: ignore[no-untyped-def]
    space = random_space(edits=edits, limit=0.5)
    with pytest.raises(InfeasibleBudget) as error:
        cut_at_budget(space, Budget(**{kind: 1}), order)
    floor = error.value.floor
    assert str(floor.macs) in str(error.value) and str(floor.params) in str(error.value)
    assert space.cost(cut_at_budget(space, Budget(floor.macs, floor.params), order)) == floor
    side = KINDS.index(kind)
    with pytest.raises(InfeasibleBudget):
        cut_at_budget(space, Budget(**{kind: floor[side] - 1}), order)
    assert space.cost(cut_at_budget(space, Budget(**{kind: floor[side]}), order))[side] == floor[side]


@pytest.mark.parametrize("edits", [(), FACTORED])
@pytest.mark.parametrize("limit", [0.0, 0.3, 0.5, 0.9, 0.999])
def test_no_side_loses_more_than_the_limit(limit: float, edits: tuple[FactorEdit, ...]) -> None:
    space = random_space(edits=edits, limit=limit)
    kept, reached = cut_at_ratio(space, 1.0, importance), 0
    for cell in cells(space):
        ranks = cell.ranks((kept[cell.sets[0]], kept[cell.sets[1]]))
        channels = cell.shape.in_channels, cell.shape.out_channels
        for rank, full, present in zip(ranks[:2], channels, cell.full, strict=True):
            # What had been cut before counts, but is not given back.
            least = min(max(1, math.ceil(round((1 - limit) * full, 6))), present)
            left = full if rank is None else rank
            assert left >= least
            reached += left == least
    assert reached > len(space.cells) / 2


@settings(max_examples=20)
@given(st.integers(0, 50), st.floats(0, 1), st.sampled_from([(), FACTORED]))
def test_parameters_of_a_layer_never_grow_unless_allowed(
    seed: int, ratio: float, edits: tuple[FactorEdit, ...]
) -> None:
    space = random_space(edits=edits, seed=seed)
    planned = forms(space, cut_at_ratio(space, ratio, importance))
    for cell in cells(space):
        assert cell.shape.params(planned[cell.name]) <= cell.shape.params(cell.form)


def test_a_budget_of_parameters_is_met_where_a_cheaper_form_has_more_of_them() -> None:
    """A strided layer's input rotation saves parameters but few MACs, so the form with the fewest MACs may drop it."""
    shape = ConvShape(16, 32, 9, 64, 16, False)
    inputs = torch.tensor([9.0] * 3 + [0.1] * 13, dtype=torch.float64)
    outputs = torch.tensor([9.0] + [0.2] * 31, dtype=torch.float64)
    space = toy_space({"a": shape}, {"a": torch.outer(outputs / outputs.sum(), inputs)}, limit=0.97)
    kept, costs = space.everything(), [space.cost(space.everything()).params]
    for index in importance(space):
        kept[index] -= 1
        costs.append(space.cost(kept).params)
    assert any(after > before for before, after in itertools.pairwise(costs))
    for budget in sorted(set(costs)):
        spent = space.cost(cut_at_budget(space, Budget(params=budget), importance)).params
        assert spent <= budget


def test_a_worthless_layer_is_cut_first() -> None:
    shape = ConvShape(20, 20, 9, 16, 16, False)
    ones = torch.ones(20, 20, dtype=torch.float64)
    for normalize in (False, True):
        space = toy_space({"a": shape, "b": shape}, {"a": ones, "b": 0 * ones}, normalize=normalize)
        assert forms(space, cut_at_ratio(space, 36 / 80, importance)) == {"a": DENSE, "b": Ranks(2, 2)}


def test_costs_add_up_exactly() -> None:
    """No rounding on the way: removing all and putting all back is where it began."""
    space = random_space(edits=FACTORED)
    whole = space.cost(space.everything())
    assert cut_at_budget(space, Budget(macs=whole.macs), importance) == space.everything()
    assert whole.plus(Cost(3, 4)).minus(Cost(3, 4)) == whole
