"""Tables of times never fall along a rank, and between points they lie on a line."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import RegularGridInterpolator
from torch import Tensor

from hybridprune.latency.table import CHANNELS, FormTimes, Grid, WidthTimes, monotone
from hybridprune.models.factored import DENSE, Ranks

SIZES = st.lists(st.integers(1, 5), min_size=0, max_size=2)


def noise(sizes: list[int], seed: int) -> Tensor:
    return 1 + torch.rand(sizes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def never_falls(times: Tensor) -> bool:
    return all(bool((times.diff(dim=axis) >= 0).all()) for axis in range(times.ndim))


@given(SIZES, st.integers(0, 99))
def test_what_a_clock_says_is_made_monotone(sizes: list[int], seed: int) -> None:
    times = noise(sizes, seed)
    found = monotone(times)
    assert never_falls(found) and found.shape == times.shape
    assert times.min() <= found.min() and found.max() <= times.max()
    assert monotone(found).equal(found)  # and what is so already stays


def test_of_a_fall_both_sides_give_way() -> None:
    assert monotone(torch.tensor([1.0, 3.0, 2.0, 4.0])).tolist() == [1.0, 2.5, 2.5, 4.0]


def grid(axes: list[list[int]], seed: int = 0) -> Grid:
    """A grid that rises along each axis, in steps of any size."""
    times = noise([len(axis) for axis in axes], seed)
    for axis in range(len(axes)):
        times = times.cumsum(axis)
    return Grid.measured(axes, times * 1e6)


AXES: dict[str, list[list[int]]] = {
    "one": [[1, 4, 8, 16]],
    "two": [[1, 3, 9], [2, 8, 24, 64]],
    "point": [[7]],
    "none": [],
}


@pytest.mark.parametrize("name", AXES)
def test_between_points_times_are_multilinear(name: str) -> None:
    axes = AXES[name]
    table = grid(axes)
    places = [torch.arange(axis[0], axis[-1] + 1) for axis in axes]
    every = [each.flatten() for each in torch.meshgrid(*places, indexing="ij")] if places else []
    found = table.at(*every)
    if name in ("one", "two"):
        oracle = RegularGridInterpolator([np.array(axis, float) for axis in axes], table.ns.numpy())
        expected = oracle(torch.stack(every, 1).double().numpy())
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)
        assert never_falls(found.reshape([len(each) for each in places]))
    else:
        assert found.flatten().tolist() == table.ns.flatten().tolist()


def test_beyond_the_ends_they_are_constant() -> None:
    table = grid([[4, 8]])
    assert table.at(torch.tensor([1, 4, 8, 99])).tolist() == [*table.ns[[0, 0]].tolist(), *table.ns[[1, 1]].tolist()]


@pytest.mark.parametrize("name", AXES)
def test_a_grid_survives_its_file(name: str) -> None:
    table = grid(AXES[name])
    again = Grid.from_json(table.to_json())
    assert again.axes == table.axes and again.ns.equal(table.ns)


@pytest.mark.parametrize(
    "change",
    [
        {"axes": [[1, 4, 4, 16]]},
        {"axes": [[1, 4, 8]]},
        {"axes": [["1", 4, 8, 16]]},
        {"axes": 3},
        {"ns": [1.0, 2.0, -3.0, 4.0]},
        {"ns": [1.0, 2.0, None, 4.0]},
        {"ns": [1.0, 2.0, float("nan"), 4.0]},
    ],
)
def test_a_broken_grid_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        Grid.from_json({**grid(AXES["one"]).to_json(), **change})


GRIDS = {
    "dense": grid([]),
    "input-sided": grid([[1, 4, 8]], 1),
    "output-sided": grid([[1, 3, 6]], 2),
    "two-sided": grid([[1, 4, 8], [1, 3, 6]], 3),
    "separable": grid([[8, 16, 40]], 4),
}


@settings(max_examples=20)
@given(st.integers(1, 8), st.integers(1, 6))
def test_many_ranks_at_once_are_as_one_by_one(rank_in: int, rank_out: int) -> None:
    times = FormTimes(GRIDS, scale=2.0, multiple=8)
    for ranks in (Ranks(rank_in, None), Ranks(None, rank_out), Ranks(rank_in, rank_out), Ranks(rank_in, rank_in, True)):
        many = Ranks(*(None if r is None else torch.tensor([r, r]) for r in ranks[:2]), ranks.separable)  # type: ignore[arg-type]
        assert times.of(many).tolist() == [int(times.of(ranks))] * 2 and times.of(ranks).dtype == torch.int64
    assert int(times.of(DENSE)) == round(2 * float(GRIDS["dense"].ns))


def test_each_form_has_its_own_ranks_and_components_are_filled_up() -> None:
    times, separable = FormTimes(GRIDS, multiple=8), GRIDS["separable"]
    assert int(times.of(Ranks(4, None))) == round(float(GRIDS["input-sided"].ns[1]))
    assert int(times.of(Ranks(None, 3))) == round(float(GRIDS["output-sided"].ns[1]))
    assert int(times.of(Ranks(4, 6))) == round(float(GRIDS["two-sided"].ns[1, 2]))
    assert int(times.of(Ranks(9, 9, True))) == int(times.of(Ranks(16, 16, True))) == round(float(separable.ns[1]))
    assert int(FormTimes(GRIDS).of(Ranks(12, 12, True))) == pytest.approx(float(separable.ns[:2].mean()), abs=1)


def test_widths() -> None:
    two, one = GRIDS["two-sided"], GRIDS["output-sided"]
    assert WidthTimes(two, scale=3.0).of(4, 3) == round(3 * float(two.ns[1, 1]))
    assert WidthTimes(one).of(1, 3) == round(float(one.ns[1]))  # each channel by itself
    assert CHANNELS not in GRIDS
