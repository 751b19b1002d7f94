"""Forms that are chosen by time: what is planned is what the layer becomes, and its time is within the bound."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridprune.latency.geometry import Geometry
from hybridprune.latency.points import form_axes
from hybridprune.latency.table import FormTimes, Grid
from hybridprune.models.edits import FactorEdit
from hybridprune.models.factored import DENSE, Ranks
from hybridprune.pruning.budget import greedy
from hybridprune.pruning.budget.space import Budget, InfeasibleBudget
from hybridprune.pruning.clock import NetworkTimes
from hybridprune.pruning.directions import rate_distortion
from hybridprune.pruning.directions.layer_forms import ConvShape
from hybridprune.pruning.directions.space import DirectionCell, FormPrice
from tests.pruning.random_curvature import cells, random_importance, random_space, source, toy_space

SHAPE = ConvShape(9, 7, 9, 16, 16, False)
GEOMETRY = Geometry(9, 7, 1, (4, 4), (3, 3), (1, 1), (1, 1), (1, 1))


def random_times(seed: int) -> FormTimes:
    """Monotone times that follow no law."""
    draw = source(seed)
    return FormTimes(
        {
            name: Grid.measured(
                axes, 1e6 * torch.rand([len(axis) for axis in axes], generator=draw, dtype=torch.float64)
            )
            for name, axes in form_axes(GEOMETRY, 4, 1).items()
        }
    )


def cell(seed: int, form: Ranks = DENSE, price: FormPrice | None = None, allow_increase: bool = True) -> DirectionCell:
    full = (form.rank_in or 9, form.rank_out or 7)
    importance = random_importance(full[1], full[0], source(seed))
    losses = importance.new_zeros(full[1] + 1, full[0] + 1)
    losses[1:, 1:] = importance.cumsum(0).cumsum(1)
    return DirectionCell(
        "layer", (0, 1), SHAPE, form, full, (1, 1), losses[-1, -1] - losses, allow_increase,
        times=random_times(seed), price=price or FormPrice(0.0, 0.0, 1.0),
    )  # fmt: skip


@settings(max_examples=40)
@given(
    st.integers(0, 999),
    st.sampled_from([DENSE, Ranks(5, 4), Ranks(6, None), Ranks(None, 5)]),
    st.sampled_from([FormPrice(0.0, 0.0, 1.0), FormPrice(1e-5, 0.0, 1e-6), FormPrice(1e-5, 1e-3, 1e-6), FormPrice()]),
    st.booleans(),
)
def test_every_choice_is_the_form_that_its_ranks_say(
    seed: int, form: Ranks, price: FormPrice, allow_increase: bool
) -> None:
    found = cell(seed, form, price, allow_increase)
    choices = found.choices()
    for i in range(len(choices.loss)):
        kept = int(choices.kept_in[i]), int(choices.kept_out[i])
        cost = found.cost(kept)
        assert cost == (int(choices.macs[i]), int(choices.params[i]), int(choices.ns[i])), kept
        assert found.loss(kept) == float(choices.loss[i])


@settings(max_examples=20)
@given(st.integers(0, 999))
def test_the_form_is_the_fastest_of_those_that_keep_as_much(seed: int) -> None:
    found = cell(seed)
    assert found.times is not None
    for kept in itertools.product(range(1, 9), range(1, 7)):
        forms = [DENSE, Ranks(kept[0], None), Ranks(None, kept[1]), Ranks(*kept)]
        assert found.cost(kept).ns == min(int(found.times.of(ranks)) for ranks in forms)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("share", [0.5, 0.7, 0.9])
def test_time_is_a_bound_like_the_others(seed: int, share: float) -> None:
    layers = {name: SHAPE for name in ("a", "b", "c")}
    draw = source(seed)
    space = toy_space(layers, {name: random_importance(7, 9, draw) for name in layers})
    timed = [_with(each, random_times(seed + number)) for number, each in enumerate(cells(space))]
    space = type(space)(space.sets, timed, space.other._replace(ns=100))
    whole = space.cost(space.everything())
    for budget in (Budget(ns=share * whole.ns), Budget(macs=0.8 * whole.macs, ns=share * whole.ns)):
        for cut in (
            lambda b: rate_distortion.cut_at_budget(space, b),
            lambda b: greedy.cut_at_budget(space, b, greedy.importance),
        ):
            try:
                kept = cut(budget)
            except InfeasibleBudget as error:
                assert not budget.allows(error.floor)
                continue
            assert budget.allows(space.cost(kept))


def _with(found: DirectionCell, times: FormTimes) -> DirectionCell:
    return DirectionCell(**{**vars(found), "times": times, "price": FormPrice(0.0, 0.0, 1.0)})


def test_what_is_not_in_the_layers_is_what_the_whole_takes_beside_them() -> None:
    times = random_times(0)

    class All(dict[str, FormTimes]):
        def get(self, name: str, default: object = None) -> FormTimes:  # type: ignore[override]
            return times

    space = random_space(8, 4, times=NetworkTimes(10_000_000, All()))
    assert space.cost(space.everything()).ns == 10_000_000
    spent = sum(int(times.of(each.form)) for each in cells(space))
    assert space.other.ns == 10_000_000 - spent


@pytest.mark.parametrize("method", ["rate_distortion", "importance"])
def test_a_small_separable_layer_that_no_other_form_replaces(method: str) -> None:
    edits = (FactorEdit("backbone.blocks.2.conv1", 12, 12, separable=True),)
    space = random_space(8, 8, edits=edits)
    budget = Budget(macs=0.7 * space.cost(space.everything()).macs)
    if method == "importance":
        kept = greedy.cut_at_budget(space, budget, greedy.importance)
    else:
        kept = rate_distortion.cut_at_budget(space, budget)
    assert budget.allows(space.cost(kept))
