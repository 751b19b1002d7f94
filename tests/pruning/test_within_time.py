"""A budget of time is met by the clock, whatever the tables expected."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hybridprune.pruning.budget import greedy
from hybridprune.pruning.budget.space import Budget, Cost, InfeasibleBudget, Space, UnitSet
from hybridprune.pruning.clock import NetworkTimes, Reading
from hybridprune.pruning.within_time import (
    AIM,
    ROUNDS,
    TOLERANCE,
    allocate_within_time,
    check_record,
    next_target,
    told,
)

UNITS = 200


@dataclass(frozen=True)
class UnitCell:
    """As many nanoseconds and MACs as units."""

    sets: tuple[int, ...] = (0,)

    def cost(self, kept: tuple[int, ...]) -> Cost:
        return Cost(kept[0], 0, 1000 * kept[0])

    def relaxed_macs(self, kept: tuple[int, ...]) -> float:
        return kept[0]


SPACE = Space([UnitSet("units", torch.linspace(1, 0.1, UNITS), 20)], [UnitCell()], Cost(0, 0, 10_000))
DENSE_NS = 10_000 + 1000 * UNITS


@dataclass
class FakePlan:
    """A plan whose network is as many units."""

    space: Space = SPACE
    asked: list[float | None] = field(default_factory=list)

    def allocate(self, ratio: float, budget: Budget | None) -> list[int]:
        assert budget is not None
        self.asked.append(budget.ns)
        return greedy.cut_at_budget(self.space, budget, greedy.importance)

    def sketch(self, kept: Sequence[int]) -> nn.Module:
        return nn.Linear(kept[0], 1)


@dataclass
class FakeClock:
    """A clock by which a share of the units takes what ``true`` says of the share."""

    true: Callable[[float], float]
    drift: Callable[[int], float] = lambda number: 1.0
    """The machine is slower by this factor, all of it, at each reading."""
    dense_ns: int = DENSE_NS
    seconds: float = 1.0
    block: int = 1
    setting: Mapping[str, Any] = field(
        default_factory=lambda: {"engine": "eager", "batch": 4, "threads": 1, "hardware": "none", "points": 3}
    )
    luck: Callable[[int], float] = lambda number: 1.0
    """The cut network seems so much slower at each reading."""
    reads: int = 0
    anew: int = 0

    def read(self, model: nn.Module, *, anew: bool = False) -> Reading:
        assert isinstance(model, nn.Linear)
        self.reads += 1
        self.anew += anew
        slower = self.drift(self.reads)
        found = slower * self.dense_ns * self.true(model.in_features / UNITS)
        return Reading(self.luck(self.reads) * found, slower * self.dense_ns)

    def directions(self, network: Any, names: Sequence[str]) -> NetworkTimes[Any]:
        raise NotImplementedError

    channels = directions

    def inner_channels(self, network: Any, producers: Sequence[str], readers: Sequence[str]) -> dict[str, Any]:
        raise NotImplementedError


def met(target: float, clock: FakeClock, budget: Budget | None = None) -> tuple[list[int], dict[str, Any]]:
    ns = target * DENSE_NS if target <= 1 else target * 1e6
    plan: Any = FakePlan()
    kept, record = allocate_within_time(plan, dataclasses.replace(budget or Budget(), ns=ns), clock, target)
    assert plan.asked[0] == ns  # the tables are believed at first
    return kept, record


CLOCKS: dict[str, Callable[[float], float]] = {
    "as the tables say": lambda share: (10 + UNITS * share) / (10 + UNITS),
    "slower": lambda share: 0.3 + 0.7 * share,
    "faster": lambda share: share**1.7,
    "steps": lambda share: 0.1 + 0.9 * math.ceil(share * 25) / 25,
}


@pytest.mark.parametrize("target", [0.5, 0.7, 0.9])
@pytest.mark.parametrize("name", CLOCKS)
def test_the_clock_has_the_last_word(name: str, target: float) -> None:
    clock = FakeClock(CLOCKS[name])
    kept, record = met(target, clock)
    realised = CLOCKS[name](kept[0] / UNITS)
    assert record["met"] and abs(realised / target - 1) <= TOLERANCE
    assert record["realised_ms"] == pytest.approx(realised * DENSE_NS / 1e6)
    assert record["predicted_ms"] == SPACE.cost(kept).ns / 1e6 and record["target_ms"] == target * DENSE_NS / 1e6
    assert record["rounds"] <= ROUNDS and clock.reads <= record["rounds"] + 1 and clock.anew == 1
    if name == "as the tables say":
        assert record["rounds"] == 1 and abs(realised / target - 1) <= AIM
    check_record(record)


def test_a_machine_that_slows_down_does_not_change_a_share() -> None:
    steady, slowing = FakeClock(CLOCKS["slower"]), FakeClock(CLOCKS["slower"], drift=lambda number: 1 + number)
    (kept, one), (same, two) = met(0.6, steady), met(0.6, slowing)
    assert kept == same and two["realised_ms"] > one["realised_ms"] and two["met"]
    for name in ("target_ms", "predicted_ms", "realised_ms"):
        assert two[name] / two["dense_ms"] == pytest.approx(one[name] / one["dense_ms"]), name


def test_a_lucky_time_is_not_believed() -> None:
    def true(share: float) -> float:
        return 1.1 * CLOCKS["as the tables say"](share)

    clock = FakeClock(true, luck=lambda number: 1 / 1.1 if number == 1 else 1.0)
    kept, record = met(0.7, clock)
    assert record["met"] and record["rounds"] > 1 and clock.anew == 2
    assert abs(true(kept[0] / UNITS) / 0.7 - 1) <= AIM


def test_what_is_taken_was_timed_twice() -> None:
    """Seldom near, and then by luck: at the end the nearest is timed again, until that is one of the confirmed."""
    clock = FakeClock(CLOCKS["steps"], luck=lambda number: 0.8 if number % 2 else 1.25)
    _, record = met(0.7, clock)
    assert clock.anew >= 1
    assert record["met"] == (abs(record["realised_ms"] / record["dense_ms"] / 0.7 - 1) <= TOLERANCE)


def test_the_mean_of_two_readings() -> None:
    mean = Reading(2.0, 4.0).mean(Reading(8.0, 10.0))
    assert (mean.ns, mean.dense_ns) == (5.0, 7.0) and 0.5 < mean.share < 0.8


def test_milliseconds_are_those_of_the_clock_as_it_is_now() -> None:
    clock = FakeClock(CLOCKS["as the tables say"], drift=lambda number: 10.0)
    _, record = met(1.26, clock)
    assert record["realised_ms"] == pytest.approx(1.26, rel=TOLERANCE) and record["target_ms"] == 1.26
    assert record["met"] and record["dense_ms"] == pytest.approx(10 * DENSE_NS / 1e6)


def test_what_is_fast_enough_is_not_cut() -> None:
    clock = FakeClock(lambda share: 0.2 * share)
    kept, record = met(0.8, clock)
    assert kept == [UNITS] and record["met"] and record["rounds"] <= 3


def test_the_floor_is_what_the_clock_says_of_the_fastest_plan() -> None:
    with pytest.raises(InfeasibleBudget) as error:
        met(0.2, FakeClock(CLOCKS["slower"]))
    floor = error.value.floor
    assert floor.ns == pytest.approx(CLOCKS["slower"](20 / UNITS) * DENSE_NS, rel=1e-6) and floor.macs == 20
    _, record = met(floor.ns / DENSE_NS, FakeClock(CLOCKS["slower"]))
    assert record["met"]


def test_a_cut_that_gains_no_time_is_refused_though_the_floor_was_not_tried() -> None:
    clock = FakeClock(lambda share: 1.02 if share < 1 else 1.0)
    with pytest.raises(InfeasibleBudget) as found:
        met(0.9, clock)
    assert found.value.floor.ns == pytest.approx(1.02 * DENSE_NS, rel=1e-6) and clock.reads == ROUNDS + 1
    assert found.value.gains_nothing
    with pytest.raises(InfeasibleBudget):  # another run of the clock may say as well that it gains nothing
        met(0.9, FakeClock(lambda share: 0.985))
    kept, record = met(0.9, FakeClock(lambda share: 0.97))
    assert len(kept) == 1 and not record["met"] and record["rounds"] == ROUNDS


def test_tables_that_expect_too_much_time_refuse_nothing() -> None:
    """The fastest plan is expected to be too slow, and is not."""
    kept, record = met(0.1, FakeClock(lambda share: 0.7 * share))
    assert record["met"] and kept[0] >= 20


def test_a_bound_on_flops_that_cannot_be_met_is_refused_as_before() -> None:
    with pytest.raises(InfeasibleBudget) as error:
        met(0.5, FakeClock(CLOCKS["slower"]), Budget(macs=5))
    assert error.value.floor.macs == 20


def test_a_bound_on_flops_may_leave_time() -> None:
    clock = FakeClock(CLOCKS["as the tables say"])
    kept, record = met(0.8, clock, Budget(macs=60))
    assert kept == [60] and record["met"] and record["rounds"] == 1


def test_what_is_missed_is_called_so() -> None:
    _, record = met(0.5, FakeClock(lambda share: 0.1 if share < 0.4 else 0.9))
    assert not record["met"] and record["rounds"] == ROUNDS and record["realised_ms"] <= 0.5 * record["dense_ms"]
    assert told(record).startswith("budget of time missed: a batch of 4 takes 0.021 ms deployed (eager, 1 threads), ")
    assert not told({**record, "met": True}).startswith("budget of time missed")


@given(st.lists(st.tuples(st.floats(1, 1e9), st.floats(0.1, 10)), min_size=1, max_size=ROUNDS))
def test_the_next_target_lies_between_what_was_too_fast_and_too_slow(tried: list[tuple[float, float]]) -> None:
    tried = list(dict(tried).items())
    found = next_target(tried)
    fast = [planned for planned, over in tried if over <= 1]
    slow = [planned for planned, over in tried if over > 1]
    if fast and slow:
        low, high = sorted((max(fast), min(slow)))
        assert low * (1 - 1e-9) <= found <= high * (1 + 1e-9)
    else:
        assert (found <= tried[-1][0]) == (tried[-1][1] >= 1)
        assert 0.5 <= found / tried[-1][0] <= 2.0


@pytest.mark.parametrize("change", [{"met": 3}, {"dense_ms": 0}, {"batch": 0}, {"engine": None}, {"target": "1"}])
def test_a_record_that_is_none_is_refused(change: dict[str, Any]) -> None:
    _, record = met(0.5, FakeClock(CLOCKS["slower"]))
    with pytest.raises(ValueError, match=next(iter(change))):
        check_record({**record, **change})
