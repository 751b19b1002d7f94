"""Channels between two layers: what they lose, against the solved quadratic model, and what they cost."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from hybridprune.measure.cost import count_module
from hybridprune.pruning.budget.space import Cost
from hybridprune.pruning.channels import channel_groups, channel_space, remove_channels
from hybridprune.pruning.channels.space import ChannelCell
from hybridprune.pruning.directions import inner_channels
from hybridprune.pruning.directions.decomposition import Decomposition
from hybridprune.pruning.directions.inner_channels import InnerCell, removal, without_inputs
from tests.pruning.random_curvature import DIRECTION_METHODS, fisher, random_curvature, random_weight, source


def decomposed(weight: Tensor, offsets: bool, damping: float = 1e-12) -> tuple[Decomposition, Tensor]:
    """A layer's decomposition, and its Fisher matrix in units of the decomposition's scores."""
    factors, moments = random_curvature(weight, 1, offsets)
    found = DIRECTION_METHODS["fisher-tucker"].decompose(weight, factors, moments, damping)
    matrix = fisher(factors, weight[0, 0].numel())
    flat = weight.flatten()
    return found, matrix * (float(found.importance.sum()) / float(flat @ matrix @ flat))


def random_decomposition(weight: Tensor) -> Decomposition:
    """A layer's decomposition by random curvature."""
    return DIRECTION_METHODS["fisher-tucker"].decompose(weight, *random_curvature(weight, 1), 1e-12)


def solved(matrix: Tensor, weight: Tensor, gone: tuple[int, ...]) -> tuple[float, Tensor]:
    """The rise of the quadratic model when these inputs go and all other weights are at their best, and these."""
    away = torch.zeros(weight.shape, dtype=torch.bool)
    away[:, list(gone)] = True
    away = away.flatten()
    kept, w = ~away, weight.flatten()
    change = torch.zeros_like(w)
    change[away] = -w[away]
    change[kept] = torch.linalg.solve(matrix[kept][:, kept], matrix[kept][:, away] @ w[away])
    return float(change @ matrix @ change), (w + change).view_as(weight)


@pytest.mark.parametrize("offsets", [False, True])
def test_each_channel_is_the_one_that_the_others_make_up_for_best(offsets: bool) -> None:
    weight = torch.randn(3, 4, 2, 1, dtype=torch.float64, generator=source(0))
    decomposition, matrix = decomposed(weight, offsets)
    found = removal(decomposition)
    gone: tuple[int, ...] = ()
    for number in range(1, 4):
        tried = {(*gone, j): solved(matrix, weight, (*gone, j))[0] for j in range(4) if j not in gone}
        gone = min(tried, key=tried.__getitem__)
        assert tuple(found.order[:number].tolist()) == gone
        assert float(found.losses[number]) == pytest.approx(tried[gone], rel=1e-3)
    assert len(found.losses) == 4 and found.losses[0] == 0 and sorted(found.order.tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize("offsets", [False, True])
@pytest.mark.parametrize("gone", [(2,), (0, 3), (1, 2, 4)])
def test_the_other_inputs_make_up_for_those_that_go(gone: tuple[int, ...], offsets: bool) -> None:
    weight = random_weight(3, 5, 2)
    decomposition, matrix = decomposed(weight, offsets)
    expected = solved(matrix, weight, gone)[1]
    found = without_inputs(decomposition, torch.tensor(gone))
    assert not found[:, list(gone)].any()
    # The metric over kernel offsets is damped by more than the others.
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-3 if offsets else 1e-6)


def test_many_channels_are_removed_as_they_are_one_by_one() -> None:
    """The steps keep what the last one left; a projection onto all that is gone says the same."""
    decomposition, matrix = decomposed(random_weight(6, 24, 1), offsets=False)
    weight = without_inputs(decomposition, torch.tensor([], dtype=torch.int64))
    found = removal(decomposition)
    for number in (1, 7, 15, 23):
        gone = tuple(found.order[:number].tolist())
        assert float(found.losses[number]) == pytest.approx(solved(matrix, weight, gone)[0], rel=1e-3)
        rest = [j for j in range(24) if j not in gone]
        assert float(found.losses[number]) <= min(
            float(found.losses[number - 1]) + 1e-9 + solved(matrix, weight, (*gone[:-1], j))[0] for j in rest
        )


def test_several_go_in_a_step_where_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their losses are those of all that is gone, whatever the order is."""
    weight = random_weight(6, 20, 1)
    decomposition, matrix = decomposed(weight, offsets=False)
    alone = removal(decomposition)
    monkeypatch.setattr(inner_channels, "STEPS", 7)
    found = removal(decomposition)
    assert sorted(found.order.tolist()) == list(range(20))
    assert torch.equal(found.order[:1], alone.order[:1])
    for number in range(1, 20):
        gone = tuple(found.order[:number].tolist())
        assert float(found.losses[number]) == pytest.approx(solved(matrix, weight, gone)[0], rel=1e-3)
    assert bool((found.losses >= alone.losses - 1e-9).all())


@pytest.mark.parametrize("steps", [512, 2, 1])
def test_a_channel_that_others_make_up_for_wholly_costs_nothing(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two inputs that are always the same are lost once; so they are where both go in one step."""
    monkeypatch.setattr(inner_channels, "STEPS", steps)
    same = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    one, core = torch.eye(3, dtype=torch.float64), random_weight(3, 3, 1)
    core[:, 2] *= 0.1  # so that they are the cheapest
    found = removal(Decomposition(one, core, one, one, same, core[:, :, 0, 0].square()))
    assert found.order[-1] == 0 and sorted(found.order.tolist()) == [0, 1, 2]
    energy = core[:, :, 0, 0].T @ core[:, :, 0, 0]
    for number in (1, 2):
        rows = same[found.order[:number]]
        spanned = torch.linalg.pinv(rows) @ rows
        assert float(found.losses[number]) == pytest.approx(float((spanned @ energy).trace()))


@pytest.mark.filterwarnings("error")
def test_what_the_next_layer_does_not_read_costs_nothing() -> None:
    weight = random_weight(4, 6, 3)
    weight[:, [1, 4]] = 0.0
    found = removal(decomposed(weight, offsets=False)[0])
    assert set(found.order[:2].tolist()) == {1, 4} and float(found.losses[2]) == pytest.approx(0, abs=1e-9)
    nothing = removal(random_decomposition(torch.zeros(4, 6, 3, 3, dtype=torch.float64)))
    assert not nothing.losses.any() and sorted(nothing.order.tolist()) == list(range(6))


class Pair(nn.Module):
    """Two convolutions, the first one's outputs through a norm and a depthwise convolution to the second."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.middle, self.second = nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.middle(self.norm(self.first(x)).relu()))


class PerPair:
    """Every layer takes 3 ns a pair of channels."""

    def of(self, inputs: int, outputs: int) -> int:
        return 3 * inputs * outputs


def inner_cell(model: nn.Module, image: Tensor, multiple: int = 1) -> InnerCell:
    group = next(
        g for g in channel_groups(model, lambda net, x: net(x), image, exclude=(), coupled=False) if g.name == "first"
    )
    macs = {name: count_module(layer, x)[0] for name, layer, x in inputs_of(model, image)}
    space = channel_space(model, [group], [torch.arange(6.0)], macs, Cost(*count_module(model, image)), limit=0.7).space
    cells = [cell for cell in space.cells if isinstance(cell, ChannelCell)]
    cells = [ChannelCell(**{**vars(cell), "times": PerPair() if cell.macs else None}) for cell in cells]
    decomposition = decomposed(random_weight(5, 6, 1), offsets=False)[0]
    return InnerCell(group, (7,), (0, 1), cells, space.sets[0], removal(decomposition), multiple)


def inputs_of(model: nn.Module, image: Tensor) -> list[tuple[str, nn.Module, Tensor]]:
    found: list[tuple[str, nn.Module, Tensor]] = []
    hooks = [
        layer.register_forward_hook(lambda m, args, y, name=name: found.append((name, m, args[0])))
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Conv2d)
    ]
    model(image)
    for hook in hooks:
        hook.remove()
    return found


@torch.no_grad()
def test_a_cell_costs_what_the_network_costs_less() -> None:
    image = torch.zeros(1, 3, 8, 8)
    dense = Cost(*count_module(Pair().eval(), image))
    for kept in range(2, 7):
        model = Pair().eval()
        cell = inner_cell(model, image)
        gone = cell.gone(kept)
        remove_channels(model, [cell.group], [gone], lambda net, x: net(x), image)
        cost = cell.cost((kept,))
        assert cost._replace(ns=0) == Cost(*count_module(model, image)).minus(dense)
        assert replace(cell, gain=0.5).cost((kept,)).ns == round(cost.ns / 2)
        assert cost.ns == 3 * (kept - 6) * (3 + 1 + 5) and cell.relaxed_macs((kept,)) == cost.macs
        assert sorted([*gone.tolist(), *cell.stay(len(gone)).tolist()]) == list(range(6))
        assert set(gone.tolist()) == set(cell.removal.order[: 6 - kept].tolist())
        assert (cell.producer, cell.consumer) == ("first", "second")


@torch.no_grad()
@pytest.mark.parametrize("multiple", [1, 2, 4])
def test_choices_are_the_numbers_that_may_stay(multiple: int) -> None:
    cell = inner_cell(Pair().eval(), torch.zeros(1, 3, 8, 8), multiple)
    choices = cell.choices()
    assert choices.kept_in.tolist() == [6, *(n for n in (5, 4, 3, 2) if n % multiple == 0)]
    for place, number in enumerate(choices.kept_in.tolist()):
        assert Cost(*(int(column[place]) for column in choices.costs)) == cell.cost((number,))
        assert float(choices.loss[place]) == cell.loss(6 - number)
    assert choices.kept(0) == (6, 0, 0) and choices.loss[0] == 0 and choices.macs[0] == 0
    pairs = itertools.pairwise(choices.loss.tolist())
    assert all(less <= more for less, more in pairs)
