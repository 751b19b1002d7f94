"""Cuts of real networks with random scores: budgets, limits, and what must never happen to a layer."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridprune.models.factored import FactorEdit
from hybridprune.models.spec import NetworkSpec
from hybridprune.pruning.forms import DENSE, ConvShape, Ranks
from hybridprune.pruning.layers import prunable_layers
from hybridprune.pruning.plan import Budget, Candidate, Cut, InfeasibleBudget, LayerPlan
from tests.pruning.cases import SIZE, cut_of, random_scores

FACTORED = (
    FactorEdit("backbone.blocks.0.conv1", 6, 7),
    FactorEdit("backbone.blocks.1.conv1", 5, None),
    FactorEdit("backbone.blocks.2.projection.0", None, 20),
)


def cut(depth: int = 8, width: int = 8, edits: tuple[FactorEdit, ...] = (), seed: int = 0, **options: Any) -> Cut:
    with torch.device("meta"):
        net = NetworkSpec("resnet", depth, width, 10, edits).build()
    layers = prunable_layers(net, SIZE)
    return cut_of(net, layers, random_scores(layers, seed), **options)


def kept(planned: LayerPlan, candidate: Candidate) -> tuple[int, int]:
    """Directions of either side that a plan keeps; one without a rotation keeps all."""
    shape, ranks = candidate.shape, planned.ranks
    return (
        shape.in_channels if ranks.rank_in is None else ranks.rank_in,
        shape.out_channels if ranks.rank_out is None else ranks.rank_out,
    )


@settings(max_examples=40)
@given(
    st.integers(0, 50), st.floats(0, 1), st.floats(0, 1), st.booleans(), st.booleans(), st.sampled_from([(), FACTORED])
)
def test_more_directions_removed_cost_no_more(
    seed: int, one: float, other: float, normalize: bool, allow_increase: bool, edits: tuple[FactorEdit, ...]
) -> None:
    this = cut(edits=edits, seed=seed, normalize=normalize, allow_increase=allow_increase)
    less, more = (this.cost(this.at_ratio(ratio)) for ratio in sorted((one, other)))
    assert more[0] <= less[0]


@pytest.mark.parametrize("share", [0.75, 0.5, 0.25])
@pytest.mark.parametrize("kind", ["macs", "params"])
def test_a_budget_is_hit_within_one_percent(kind: str, share: float) -> None:
    this = cut(depth=20, width=16)
    side = ("macs", "params").index(kind)
    budget = share * this.cost(this.at_ratio(0))[side]
    spent = this.cost(this.at_budget(Budget(**{kind: budget})))[side]
    assert 0.99 * budget <= spent <= budget


def test_of_two_budgets_both_are_kept() -> None:
    this = cut(depth=20, width=16)
    macs, params = this.cost(this.at_ratio(0))
    spent = this.cost(this.at_budget(Budget(0.6 * macs, 0.3 * params)))
    assert spent[0] <= 0.6 * macs and 0.297 * params <= spent[1] <= 0.3 * params


@pytest.mark.parametrize("kind", ["macs", "params"])
@pytest.mark.parametrize("edits", [(), FACTORED])
@pytest.mark.parametrize("seed", range(3))
def test_the_smallest_cut_that_meets_a_budget_is_taken(kind: str, edits: tuple[FactorEdit, ...], seed: int) -> None:
    this = cut(edits=edits, seed=seed)
    side = ("macs", "params").index(kind)
    plans = [this.at_ratio(removed / this.directions) for removed in range(this.directions + 1)]
    costs = [this.cost(plan)[side] for plan in plans]
    for share in (0.95, 0.8, 0.5, 0.3):
        budget = share * costs[0]
        first = next(index for index, cost in enumerate(costs) if cost <= budget)
        assert this.at_budget(Budget(**{kind: budget})) == plans[first]


def test_a_budget_above_the_present_cost_changes_nothing() -> None:
    this = cut(edits=FACTORED)
    assert this.at_budget(Budget(macs=1e12, params=1e12)) == this.at_ratio(0)


@pytest.mark.parametrize("edits", [(), FACTORED])
@pytest.mark.parametrize("limit", [0.0, 0.3, 0.5, 0.9, 0.999])
def test_no_side_loses_more_than_the_limit(limit: float, edits: tuple[FactorEdit, ...]) -> None:
    this = cut(edits=edits, limit=limit)
    reached = 0
    for planned, candidate in zip(this.at_ratio(1.0), this.candidates, strict=True):
        channels = candidate.shape.in_channels, candidate.shape.out_channels
        now = len(candidate.in_scores), len(candidate.out_scores)
        for left, full, present in zip(kept(planned, candidate), channels, now, strict=True):
            # What had been cut before counts, but is not given back.
            least = min(max(1, math.ceil(round((1 - limit) * full, 6))), present)
            assert left >= least
            reached += left == least
    assert reached > len(this.candidates) / 2


def test_ratio_counts_directions_of_both_sides() -> None:
    shape = ConvShape(100, 100, 9, 16, 16, False)
    scores = torch.arange(100, 0, -1, dtype=torch.float64)
    this = Cut([Candidate("a", shape, DENSE, scores, scores + 0.5)], 0, 0, 0.9, False, False)
    assert this.at_ratio(0.5) == [LayerPlan("a", Ranks(50, 50))]


@pytest.mark.parametrize("ratio", [0.0, 1e-9])
def test_ratio_zero_leaves_every_layer_as_it_is(ratio: float) -> None:
    wasteful = (*FACTORED, FactorEdit("backbone.blocks.1.conv2", 16, 16))  # dense would be cheaper
    this = cut(edits=wasteful)
    assert this.at_ratio(ratio) == [LayerPlan(c.name, c.form) for c in this.candidates]
    assert any(c.form == Ranks(16, 16) for c in this.candidates)


@pytest.mark.parametrize("kind", ["macs", "params"])
def test_an_unreachable_budget_names_the_floor(kind: str) -> None:
    this = cut(limit=0.5)
    floor = this.cost(this.at_ratio(1.0))
    with pytest.raises(InfeasibleBudget) as error:
        this.at_budget(Budget(**{kind: floor[("macs", "params").index(kind)] - 1}))
    assert (error.value.macs, error.value.params) == floor
    spent = this.cost(this.at_budget(Budget(**{kind: floor[("macs", "params").index(kind)]})))
    assert spent == floor


@settings(max_examples=30)
@given(st.integers(0, 50), st.floats(0, 1), st.sampled_from([(), FACTORED]))
def test_parameters_of_a_layer_never_grow_unless_allowed(
    seed: int, ratio: float, edits: tuple[FactorEdit, ...]
) -> None:
    this = cut(edits=edits, seed=seed)
    for planned, candidate in zip(this.at_ratio(ratio), this.candidates, strict=True):
        assert candidate.shape.params(planned.ranks) <= candidate.shape.params(candidate.form)


def test_parameters_may_grow_where_that_is_allowed_and_saves_macs() -> None:
    shape = ConvShape(8, 8, 1, in_positions=1, out_positions=4, bias=False)
    low, high = torch.tensor([9.0] * 6 + [0.1] * 2), torch.full((8,), 9.0)
    for allow_increase, ranks in ((True, Ranks(6, None)), (False, DENSE)):
        this = Cut([Candidate("a", shape, DENSE, low, high)], 0, 0, 0.9, False, allow_increase)
        assert this.at_ratio(2 / 16) == [LayerPlan("a", ranks)]
    assert shape.macs(Ranks(6, None)) < shape.macs(DENSE) and shape.params(Ranks(6, None)) > shape.params(DENSE)


def test_normalised_scores_do_not_depend_on_a_layers_scale() -> None:
    shape = ConvShape(40, 40, 9, 16, 16, False)
    scores = torch.rand(2, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ones, others = scores.sort(descending=True).values
    others = others * (ones.sum() / others.sum())  # as for a real layer, both sides have one sum

    def plan(scale: float, normalize: bool) -> list[Ranks]:
        layers = [
            Candidate("a", shape, DENSE, ones, others),
            Candidate("b", shape, DENSE, ones * scale, others * scale),
        ]
        return [planned.ranks for planned in Cut(layers, 0, 0, 0.9, normalize, False).at_ratio(0.4)]

    equal = plan(1.0, normalize=False)
    assert equal[0] == equal[1] == Ranks(*equal[0]) != DENSE
    assert plan(1e4, normalize=True) == equal
    assert plan(1e4, normalize=False)[1] == DENSE


def test_a_worthless_layer_is_cut_first_even_when_normalised() -> None:
    shape = ConvShape(20, 20, 9, 16, 16, False)
    zeros, ones = torch.zeros(20), torch.ones(20)
    layers = [Candidate("a", shape, DENSE, ones, ones), Candidate("b", shape, DENSE, zeros, zeros)]
    plan = Cut(layers, 0, 0, 0.9, True, False).at_ratio(36 / 80)
    assert [planned.ranks for planned in plan] == [DENSE, Ranks(2, 2)]


def test_a_budget_of_parameters_is_met_by_the_smallest_cut_where_a_cheaper_form_has_more_of_them() -> None:
    """A strided layer's input rotation saves parameters but few MACs, so the form with the fewest MACs may drop it."""
    shape = ConvShape(16, 32, 9, 64, 16, False)
    low = torch.tensor([0.1] * 13, dtype=torch.float64)
    in_scores = torch.cat([torch.full((3,), 9.0, dtype=torch.float64), low])
    out_scores = torch.cat([torch.full((1,), 9.0, dtype=torch.float64), torch.full((31,), 0.2, dtype=torch.float64)])
    this = Cut([Candidate("a", shape, DENSE, in_scores, out_scores)], 0, 0, 0.97, False, False)
    costs = [this.cost(this.at_ratio(removed / this.directions))[1] for removed in range(this.directions + 1)]
    assert any(after > before for before, after in itertools.pairwise(costs))
    for budget in sorted(set(costs)):
        first = next(removed for removed, cost in enumerate(costs) if cost <= budget)
        assert this.at_budget(Budget(params=budget)) == this.at_ratio(first / this.directions)
