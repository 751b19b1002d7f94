"""Widths that grow with importance: the budget is met and spent, nothing shrinks, more goes to what matters more."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hybridprune.pruning.budget.greedy import cut_at_budget, importance
from hybridprune.pruning.budget.space import Budget, Cost, InfeasibleBudget, Space, UnitSet
from hybridprune.pruning.budget.width_growth import (
    Goal,
    Growth,
    adapruner,
    block_of,
    grown,
    initial_widths,
    mean_scores,
    peel,
)
from hybridprune.pruning.channels.space import ChannelCell


def chain(scores: Sequence[Tensor], least: Sequence[int], areas: Sequence[int], names: Sequence[str] = ()) -> Space:
    """A convolution into each group of channels from the one before, with a BatchNorm; an image and a classifier."""
    widths = [len(each) for each in scores]
    sets = [
        UnitSet(name, values.sort(descending=True).values, low)
        for name, values, low in zip(names or [f"layer{i}" for i in range(len(widths))], scores, least, strict=True)
    ]

    def cell(into: int, area: int) -> ChannelCell:
        members = tuple(i for i in (into - 1, into) if 0 <= i < len(widths))
        return ChannelCell(
            name=f"conv{into}",
            sets=members,
            full=tuple(widths[i] for i in members),
            inputs=widths[into - 1] if into > 0 else 3,
            outputs=widths[into] if into < len(widths) else 10,
            per_input=tuple(int(i == into - 1) for i in members),
            per_output=tuple(int(i == into) for i in members),
            macs=area * 4,
            area=area,
            extra=2,
        )

    return Space(sets, [cell(i, area) for i, area in enumerate(areas)], Cost(7, 5))


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    groups = draw(st.integers(1, 5))
    widths = [draw(st.integers(1, 24)) for _ in range(groups)]
    source = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    # Some layers without any importance, as training with L1 may leave them.
    scores = [
        torch.rand(width, generator=source, dtype=torch.float64) * draw(st.sampled_from([0.0, 0.1, 1.0]))
        for width in widths
    ]
    least = [draw(st.integers(1, width)) for width in widths]
    return chain(scores, least, [draw(st.sampled_from([1, 4, 9])) for _ in range(groups + 1)])


GROWTHS = st.builds(
    Growth,
    round_to=st.sampled_from([1, 2, 4, 8]),
    backbone=st.sampled_from(["uniform", "global-gamma"]),
    pool=st.floats(0, 1),
)


@st.composite
def goals(draw: st.DrawFn, space: Space) -> Goal:
    """What can be met: budgets of MACs, of parameters, of both, or a ratio."""
    floor, whole = space.cost([units.least for units in space.sets]), space.cost(space.everything())
    kind = draw(st.sampled_from(["macs", "params", "both", "ratio"]))
    share = draw(st.floats(0, 1))
    if kind == "ratio":
        most = sum(units.removable for units in space.sets) / sum(space.everything())
        return Goal(share * most, None)
    macs = floor.macs + share * (whole.macs - floor.macs)
    params = floor.params + draw(st.floats(0, 1)) * (whole.params - floor.params)
    return Goal(0.5, Budget(None if kind == "params" else macs, None if kind == "macs" else params))


def met(space: Space, goal: Goal, kept: Sequence[int]) -> bool:
    """Counted anew."""
    cost = space.cost(kept)
    if goal.budget is None:
        total = sum(space.everything())
        return total - sum(kept) >= round(goal.ratio * total)
    return (goal.budget.macs is None or cost.macs <= goal.budget.macs) and (
        goal.budget.params is None or cost.params <= goal.budget.params
    )


def one_step_more(space: Space, kept: Sequence[int], round_to: int) -> list[list[int]]:
    found = []
    for i, units in enumerate(space.sets):
        multiples = range(0, len(units.scores) + round_to, round_to)
        if kept[i] < len(units.scores):
            wider = min([m for m in multiples if m > kept[i]] + [len(units.scores)])
            found.append([*kept[:i], min(wider, len(units.scores)), *kept[i + 1 :]])
    return found


@settings(max_examples=150, deadline=None)
@given(data=st.data(), space=spaces(), growth=GROWTHS)
def test_the_budget_is_met_and_the_pool_is_empty(data: st.DataObject, space: Space, growth: Growth) -> None:
    goal = data.draw(goals(space))
    start = initial_widths(space, goal, growth)
    for kept in (peel(space, goal, growth), adapruner(space, goal, growth)):
        assert met(space, goal, kept)
        for width, units in zip(kept, space.sets, strict=True):
            assert width % growth.round_to == 0 or width in (units.least, len(units.scores))
            assert units.least <= width <= len(units.scores)
        assert not any(met(space, goal, wider) for wider in one_step_more(space, kept, growth.round_to))
    assert all(now >= before for now, before in zip(peel(space, goal, growth), start, strict=True))


@settings(max_examples=60, deadline=None)
@given(data=st.data(), space=spaces(), growth=GROWTHS)
def test_the_backbone_leaves_the_pool(data: st.DataObject, space: Space, growth: Growth) -> None:
    goal = data.draw(goals(space))
    start = initial_widths(space, goal, growth)
    floor = [units.least for units in space.sets]
    if goal.budget is not None:
        share = 1 - growth.pool
        small = Budget(
            None if goal.budget.macs is None else share * goal.budget.macs,
            None if goal.budget.params is None else share * goal.budget.params,
        )
        assert small.allows(space.cost(start)) or start == floor
    if growth.backbone == "uniform":
        shares = [
            (width + s) / len(units.scores)
            for width, units in zip(start, space.sets, strict=True)
            if units.least < width < len(units.scores)
            for s in (-growth.round_to / 2, growth.round_to / 2)
        ]
        # One share of the channels rounds to all of these widths.
        assert not shares or max(shares[::2]) <= min(shares[1::2]) + 1e-9


def test_a_global_backbone_is_the_global_cut_rounded_down() -> None:
    draw = torch.Generator().manual_seed(3)
    space = chain([torch.rand(12, generator=draw) * scale for scale in (1.0, 0.5, 2.0)], [1, 2, 1], [9, 9, 9, 1])
    budget = Budget(macs=0.6 * space.cost(space.everything()).macs)
    assert budget.macs is not None
    exact = cut_at_budget(space, Budget(macs=0.7 * budget.macs), importance)
    found = initial_widths(space, Goal(0.5, budget), Growth(4, "global-gamma", 0.3))
    assert found == [max(width // 4 * 4, units.least) for width, units in zip(exact, space.sets, strict=True)]
    assert len(set(exact)) == 3


def brute_force(start: Sequence[int], worth: Sequence[float], space: Space, goal: Goal, round_to: int) -> list[int]:
    """The issue's formula with a fine grid of t in the place of bisection; no single steps."""
    best = [max(c, units.least) for c, units in zip(start, space.sets, strict=True)]
    for t in torch.linspace(0, 60, 60_001, dtype=torch.float64).tolist():
        kept = []
        for c0, own, units in zip(start, worth, space.sets, strict=True):
            full = len(units.scores)
            raw = c0 + t * own / sum(worth) * full
            kept.append(max(units.least, min(full, round_to * math.floor(raw / round_to + 0.5))))
        if not met(space, goal, kept):
            return best
        best = kept
    return best


@pytest.mark.parametrize("round_to", [1, 4])
@pytest.mark.parametrize("share", [0.45, 0.7])
def test_widths_are_those_of_the_formula_before_single_steps(round_to: int, share: float) -> None:
    draw = torch.Generator().manual_seed(1)
    space = chain([torch.rand(24, generator=draw) * scale for scale in (1.0, 0.4, 3.0)], [2, 2, 2], [9, 9, 1, 1])
    goal = Goal(0.5, Budget(macs=share * space.cost(space.everything()).macs))
    growth = Growth(round_to, "uniform", 0.5)
    start = initial_widths(space, goal, growth)
    formula = brute_force(start, mean_scores(space), space, goal, round_to)
    found = peel(space, goal, growth)
    assert formula != start
    assert all(b >= a for a, b in zip(formula, found, strict=True))
    # What single steps add is at most what the next step of the formula would have been too much.
    assert sum(b - a for a, b in zip(formula, found, strict=True)) <= 3 * round_to
    assert found[2] - start[2] > found[0] - start[0] > found[1] - start[1]


def test_what_matters_nothing_gains_last_and_evenly() -> None:
    space = chain([torch.zeros(8), torch.zeros(16), torch.ones(4)], [1, 1, 1], [1, 1, 1, 1])
    goal = Goal(ratio=0.5, budget=None)  # 14 of 28 stay
    kept = grown(space, [1, 1, 1], mean_scores(space), goal, Growth())
    assert kept[2] == 4 and sum(kept) == 14
    assert abs(kept[0] / 8 - kept[1] / 16) <= 1 / 8
    assert sum(grown(space, [1, 1, 1], [0.0, 0.0, 0.0], goal, Growth())) == 14


def test_a_larger_budget_makes_nothing_much_narrower_and_everything_fits_the_whole() -> None:
    draw = torch.Generator().manual_seed(2)
    space = chain([torch.rand(16, generator=draw) for _ in range(4)], [1] * 4, [9] * 5)
    whole = space.cost(space.everything()).macs
    spent = []
    for share in (0.2, 0.4, 0.6, 0.8, 1.0):
        for allocation in (peel, adapruner):
            spent.append(space.cost(allocation(space, Goal(0, Budget(macs=share * whole)), Growth())).macs)
    assert all(b > a for a, b in itertools.pairwise(spent[::2])) and all(
        b > a for a, b in itertools.pairwise(spent[1::2])
    )
    assert spent[-2:] == [whole, whole]


def test_below_the_floor_is_refused_and_the_floor_is_reached() -> None:
    space = chain([torch.rand(8), torch.rand(8)], [3, 4], [9, 9, 1])
    floor = space.cost([3, 4])
    for allocation in (peel, adapruner):
        with pytest.raises(InfeasibleBudget) as caught:
            allocation(space, Goal(0.5, Budget(macs=floor.macs - 1)), Growth(round_to=4))
        assert caught.value.floor == floor
        assert allocation(space, Goal(0.5, Budget(macs=floor.macs)), Growth(round_to=4)) == [3, 4]
        assert allocation(space, Goal(1.0, None), Growth(round_to=4)) == [3, 4]


def test_blocks_share_their_importance() -> None:
    names = ["stem", "blocks.0.conv1", "blocks.0.conv2", "blocks.1.conv1"]
    scores = [torch.full((12,), each) for each in (0.3, 0.1, 0.5, 0.6)]
    space = chain(scores, [1] * 4, [9] * 5, names)
    goal = Goal(0.5, Budget(macs=0.3 * space.cost(space.everything()).macs))
    stem, first, second, other = adapruner(space, goal, Growth())
    assert abs(first - second) <= 1 and stem <= first < other  # 0.3 and 0.3, and the mean of 0.1 and 0.5
    by_layer = grown(space, [0] * 4, mean_scores(space), goal, Growth())
    assert by_layer[1] < by_layer[2] - 1
    # Units count, not layers: (4 x 0.1 + 24 x 0.9) / 28 is more than 0.6, and the mean of 0.1 and 0.9 is less.
    uneven = chain([scores[0], torch.full((4,), 0.1), torch.full((24,), 0.9), scores[3]], [1] * 4, [9] * 5, names)
    kept = adapruner(uneven, Goal(0.5, None), Growth())
    assert kept[2] / 24 > kept[3] / 12 + 0.05 and abs(kept[1] - kept[2] / 6) <= 0.5


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("layer1.0.conv2", "layer1.0"),
        ("backbone.blocks.3.projection.0", "backbone.blocks.3"),
        ("features.1.0.block.2.fc1", "features.1.0"),
        ("features.2.conv.0.0", "features.2"),
        ("features.0.0", "features.0.0"),
        ("backbone.conv", "backbone.conv"),
        ("conv1", "conv1"),
        ("0", "0"),
    ],
)
def test_blocks_by_name(name: str, block: str) -> None:
    assert block_of(name) == block


def test_a_goal_is_scaled_in_its_own_unit() -> None:
    assert Goal(0.5, None).scaled(0.8).ratio == pytest.approx(0.6)
    assert Goal(0.5, Budget(100, None)).scaled(0.25) == Goal(0.5, Budget(25.0, None))
    assert Goal(0.5, Budget(None, 8)).scaled(0.5) == Goal(0.5, Budget(None, 4.0))
    space = chain([torch.rand(10)], [1], [1, 1])
    assert Goal(0.5, None).allows(space, [5]) and not Goal(0.5, None).allows(space, [6])


def test_single_steps_come_in_the_order_of_growth() -> None:
    def alone(number: int, price: int) -> ChannelCell:
        return ChannelCell(f"conv{number}", (number,), (10,), 1, 10, (0,), (1,), price, 1, 0)

    sets = [UnitSet(name, torch.ones(10), 1) for name in ("dear", "more", "less")]
    space = Space(sets, [alone(0, 100), alone(1, 1), alone(2, 1)], Cost(0, 0))
    for left, expected in ((1, [5, 6, 5]), (2, [5, 6, 6]), (3, [5, 7, 6]), (101, [6, 6, 5])):
        goal = Goal(0.5, Budget(macs=space.cost([5, 5, 5]).macs + left))
        assert grown(space, [5, 5, 5], [10.0, 2.0, 1.9], goal, Growth()) == expected
