"""The space of directions: forms, choices, limits and scales."""

from __future__ import annotations

import itertools

import pytest
import torch

from hybridprune.models.edits import FactorEdit
from hybridprune.models.factored import DENSE, Ranks
from hybridprune.pruning.budget.greedy import cut_at_ratio, importance
from hybridprune.pruning.budget.space import Cost, least_kept
from hybridprune.pruning.directions import space as direction_space_module
from hybridprune.pruning.directions.layer_forms import ConvShape
from hybridprune.pruning.directions.space import DirectionCell
from tests.networks_and_images import random_net
from tests.pruning.random_curvature import (
    cells,
    cost_of,
    expected_loss,
    forms,
    layers_of,
    random_decompositions,
    random_importance,
    random_space,
    source,
    space_of,
    toy_layer,
    toy_space,
    valued,
)

FORMS = [DENSE, Ranks(5, 6), Ranks(5, None), Ranks(None, 6), Ranks(7, 8)]
SHAPES = [
    ConvShape(7, 8, 9, 64, 64, False),
    ConvShape(7, 8, 9, 64, 16, True),
    ConvShape(7, 8, 1, 16, 16, False),
    ConvShape(7, 8, 1, 1, 4, True),
]


def cell_of(
    shape: ConvShape, form: Ranks, allow_increase: bool = False, limit: float = 0.9, multiple: int = 1
) -> DirectionCell:
    layer = toy_layer("a", shape, form)
    rank_in, rank_out = layer.directions
    assert rank_in is not None and rank_out is not None
    decomposition = valued(random_importance(rank_out, rank_in, source(0)))
    whole = Cost(shape.macs(form), shape.params(form))
    options = {"limit": limit, "allow_increase": allow_increase, "multiple": multiple}
    space = space_of([layer], {"a": decomposition}, whole, **options)
    assert space.other == Cost(0, 0) and space.cost(space.everything()) == whole
    return cells(space)[0]


@pytest.mark.parametrize("multiple", [1, 3])
@pytest.mark.parametrize("allow_increase", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_choices_are_all_that_the_ranks_can_make_of_a_layer(
    shape: ConvShape, form: Ranks, allow_increase: bool, multiple: int
) -> None:
    cell = cell_of(shape, form, allow_increase, multiple=multiple)
    now = cell.cost(cell.full)
    choices = cell.choices()
    found = set()
    columns = (choices.kept_in, choices.kept_out, choices.macs, choices.params, choices.loss)
    for *numbers, loss in zip(*(c.tolist() for c in columns), strict=True):
        kept, cost = tuple(numbers[:2]), Cost(*numbers[2:])
        assert cell.cost(kept) == cost
        assert loss == float(cell.losses[kept[1], kept[0]])
        found.add(cell.ranks(kept))
    expected = {form}
    sides = [range(least, full + 1) for least, full in zip(cell.least, cell.full, strict=True)]
    for kept in itertools.product(*sides):
        ranks = cell.ranks(kept)
        left = tuple(full if rank is None else rank for rank, full in zip(ranks[:2], cell.full, strict=True))
        if cell.cost(kept).macs < now.macs and left != cell.full:  # a layer that loses nothing stays as it is
            expected.add(ranks)
    assert found == expected


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_ranks_keep_what_they_should_in_the_cheapest_form(shape: ConvShape, form: Ranks) -> None:
    for allow_increase in (False, True):
        cell = cell_of(shape, form, allow_increase)
        assert cell.ranks(cell.full) == form
        now = shape.params(form)
        sides = [range(least, full + 1) for least, full in zip(cell.least, cell.full, strict=True)]
        for kept in itertools.product(*sides):
            if kept == cell.full:
                continue
            every = [Ranks(*ranks) for ranks in itertools.product((None, kept[0]), (None, kept[1]))]
            allowed = [shape.macs(r) for r in every if allow_increase or shape.params(r) <= now]
            ranks = cell.ranks(kept)
            assert ranks in every and cell.cost(kept) == Cost(shape.macs(ranks), shape.params(ranks))
            assert shape.macs(ranks) == min(allowed)
            assert ranks.rank_in != shape.in_channels and ranks.rank_out != shape.out_channels


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_ranks_are_rounded_up_to_multiples_or_to_all(shape: ConvShape, form: Ranks) -> None:
    plain, cell = cell_of(shape, form), cell_of(shape, form, multiple=3)
    assert cell.ranks(cell.full) == form
    sides = [range(least, full + 1) for least, full in zip(cell.least, cell.full, strict=True)]
    for kept in itertools.product(*sides):
        up = tuple(
            next(k for k in range(number, full + 1) if k % 3 == 0 or k == full)
            for number, full in zip(kept, cell.full, strict=True)
        )
        assert cell.ranks(kept) == plain.ranks(up)
        assert cell.cost(kept) == plain.cost(up)


def test_relaxed_macs_see_every_removal() -> None:
    shape = SHAPES[1]
    cell = cell_of(shape, DENSE)
    assert cell.cost((6, 8)) == cell.cost((7, 8))  # one direction less does not pay for a rotation
    assert cell.relaxed_macs((7, 8)) - cell.relaxed_macs((6, 8)) == 64 * 7 + 16 * 8 * 9


def test_sets_carry_the_scores_of_both_sides() -> None:
    net = random_net(8, 4)
    layers = layers_of(net)
    decompositions = random_decompositions(layers, offsets=True)
    space = space_of(layers, decompositions, cost_of(net), limit=0.7)
    assert [cell.name for cell in cells(space)] == [layer.name for layer in layers]
    for layer, cell in zip(layers, cells(space), strict=True):
        inputs, outputs = (space.sets[index] for index in cell.sets)
        assert (inputs.name, outputs.name) == (f"{layer.name}:in", f"{layer.name}:out")
        assert torch.equal(inputs.scores, decompositions[layer.name].in_scores)
        assert torch.equal(outputs.scores, decompositions[layer.name].out_scores)
        assert torch.equal(cell.losses, decompositions[layer.name].losses())
        assert inputs.least == least_kept(layer.shape.in_channels, len(inputs.scores), 0.7)
        assert outputs.least == least_kept(layer.shape.out_channels, len(outputs.scores), 0.7)
    assert space.cost(space.everything()) == cost_of(net)


def test_ratio_zero_leaves_every_layer_as_it_is() -> None:
    wasteful = (FactorEdit("backbone.blocks.1.conv2", 16, 16), FactorEdit("backbone.blocks.0.conv1", 6, None))
    space = random_space(edits=wasteful)  # dense would be cheaper
    assert forms(space, space.everything()) == {cell.name: cell.form for cell in cells(space)}
    assert any(cell.form == Ranks(16, 16) for cell in cells(space))
    assert expected_loss(space, space.everything()) == 0


def test_parameters_may_grow_where_that_is_allowed_and_saves_macs() -> None:
    shape = ConvShape(8, 8, 1, in_positions=1, out_positions=4, bias=False)
    low, high = torch.tensor([9.0] * 6 + [0.1] * 2, dtype=torch.float64), torch.ones(8, dtype=torch.float64)
    for allow_increase, ranks in ((True, Ranks(6, None)), (False, DENSE)):
        space = toy_space({"a": shape}, {"a": torch.outer(high, low)}, allow_increase=allow_increase)
        assert forms(space, cut_at_ratio(space, 2 / 16, importance)) == {"a": ranks}
    assert shape.macs(Ranks(6, None)) < shape.macs(DENSE) and shape.params(Ranks(6, None)) > shape.params(DENSE)


def test_normalised_scores_do_not_depend_on_a_layers_scale() -> None:
    shape = ConvShape(40, 40, 9, 16, 16, False)
    worth = random_importance(40, 40, source(0))

    def plan(scale: float, normalize: bool) -> list[Ranks]:
        space = toy_space({"a": shape, "b": shape}, {"a": worth, "b": worth * scale}, normalize=normalize)
        for cell in cells(space) if normalize else []:
            assert float(cell.losses[0, 0]) == pytest.approx(1, rel=1e-12)
            for index in cell.sets:
                assert float(space.sets[index].scores.sum()) == pytest.approx(1, rel=1e-12)
        return list(forms(space, cut_at_ratio(space, 0.4, importance)).values())

    equal = plan(1.0, normalize=False)
    assert equal[0] == equal[1] == Ranks(*equal[0]) != DENSE
    assert plan(1024.0, normalize=True) == equal
    assert plan(1e4, normalize=False)[1] == DENSE


def test_of_a_wide_layer_some_numbers_of_directions_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direction_space_module, "MOST_STEPS", 4)
    shape = ConvShape(20, 12, 1, 1, 1, False)
    cell = cell_of(shape, DENSE, limit=0.8, multiple=2)
    choices = cell.choices()
    assert set(choices.kept_in.tolist()) <= {4, 10, 14, 20} and set(choices.kept_out.tolist()) <= {4, 6, 10, 12}
    assert {4, 20} <= set(choices.kept_in.tolist()) and {4, 12} <= set(choices.kept_out.tolist())
    for kept_in, kept_out, macs in zip(choices.kept_in, choices.kept_out, choices.macs, strict=True):
        assert cell.cost((int(kept_in), int(kept_out))).macs == macs
