"""Learning-rate factors in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hybridprune.engine.schedule import factor

KINDS = ["stair", "up-down", "exponential", "cosine"]
POINTS = {"0.75": 0.01, "0.5": 0.1}  # not in order
shares = st.floats(0, 1)


@pytest.mark.parametrize(
    ("share", "stair", "linear", "geometric"),
    [
        (0.0, 1.0, 1.0, 1.0),
        (0.25, 1.0, 0.55, math.sqrt(0.1)),
        (0.499999, 1.0, 0.1, 0.1),
        (0.5, 0.1, 0.1, 0.1),
        (0.625, 0.1, 0.055, math.sqrt(0.001)),
        (0.75, 0.01, 0.01, 0.01),
        (1.0, 0.01, 0.01, 0.01),
    ],
)
def test_published_points(share: float, stair: float, linear: float, geometric: float) -> None:
    assert factor("stair", POINTS, share) == pytest.approx(stair, abs=1e-5)
    assert factor("up-down", POINTS, share) == pytest.approx(linear, abs=1e-5)
    assert factor("exponential", POINTS, share) == pytest.approx(geometric, abs=1e-5)


def test_up_down_from_a_point_at_zero() -> None:
    points = {"0": 0.2, "0.2": 1.0, "1": 0.0}
    assert [factor("up-down", points, share) for share in (0, 0.1, 0.2, 0.6, 1)] == pytest.approx([0.2, 0.6, 1, 0.5, 0])
    assert [factor("stair", points, share) for share in (0, 0.1, 0.2, 0.6, 1)] == [0.2, 0.2, 1, 1, 0]


@given(shares, st.floats(0, 0.9), st.floats(0, 0.9), st.floats(0, 0.9))
def test_cosine_in_closed_form(share: float, warm_up: float, first: float, last: float) -> None:
    points = {"0": first, str(warm_up): 1.0, "1": last}
    if share < warm_up:
        expected = first + (1 - first) * share / warm_up
    else:
        expected = last + (1 - last) * (1 + math.cos(math.pi * (share - warm_up) / (1 - warm_up))) / 2
    assert factor("cosine", points, share) == pytest.approx(expected, abs=1e-9)


def test_cosine_is_torchs_warm_up_and_annealing() -> None:
    steps, warm = 200, 20
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    schedulers = torch.optim.lr_scheduler
    schedule = schedulers.SequentialLR(
        optimizer,
        [
            schedulers.LinearLR(optimizer, start_factor=0.1, total_iters=warm),
            schedulers.CosineAnnealingLR(optimizer, T_max=steps - warm, eta_min=0.02),
        ],
        milestones=[warm],
    )
    for step in range(steps):
        wanted = factor("cosine", {"0": 0.1, "0.1": 1, "1": 0.02}, step / steps)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(wanted, abs=1e-9)
        optimizer.step()
        schedule.step()


def test_cosine_without_a_warm_up() -> None:
    assert [factor("cosine", {"1": 0}, share) for share in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0])
    assert factor("cosine", {"1": 0}, 1 / 3) == pytest.approx(0.75)


@given(shares, st.floats(0.01, 0.99), st.floats(0.01, 10))
def test_exponential_is_a_power_of_the_share(share: float, at: float, value: float) -> None:
    expected = value ** min(share / at, 1)
    assert factor("exponential", {str(at): value}, share) == pytest.approx(expected, rel=1e-9)


def test_exponential_to_zero_is_linear() -> None:
    assert factor("exponential", {"1": 0.0}, 0.25) == pytest.approx(0.75)


@given(st.sampled_from(KINDS), shares)
def test_without_points_the_rate_is_constant(kind: str, share: float) -> None:
    assert factor(kind, {}, share) == 1


@given(
    st.sampled_from(KINDS), st.dictionaries(st.floats(0, 1).map(str), st.floats(0, 10), min_size=1, max_size=4), shares
)
def test_the_points_are_met_and_bound_what_lies_between(kind: str, points: dict[str, float], share: float) -> None:
    for at, value in points.items():
        assert factor(kind, points, float(at)) == pytest.approx(value)
    low, high = min(*points.values(), 1.0), max(*points.values(), 1.0)
    assert low - 1e-9 <= factor(kind, points, share) <= high + 1e-9
