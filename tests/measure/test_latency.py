"""The interleaved clock."""

from __future__ import annotations

import torch

from hybridprune.measure.latency import Latency, device_clock, interleaved


class Machine:
    """A clock that only work moves on; it is disturbed as time goes by."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def work(self, name: str, seconds: float) -> None:
        self.calls.append(name)
        self.now += seconds


def test_arms_take_turns_and_the_warm_up_does_not_count() -> None:
    machine = Machine()
    durations = {"a": iter([9.0, 1.0, 2.0, 3.0, 4.0]), "b": iter([0.5, 8.0, 8.0, 8.0, 80.0])}
    arms = {name: (lambda name=name: machine.work(name, next(durations[name]))) for name in durations}
    found = interleaved(arms, lambda: machine.now, rounds=4, warm_up=1)
    assert machine.calls == ["a", "b"] * 5
    assert found["a"] == Latency(2500.0, 1750.0, 3250.0, 4)
    assert found["b"] == Latency(8000.0, 8000.0, 26000.0, 4)


def test_short_arms_are_repeated_within_a_round() -> None:
    machine = Machine()
    arms = {"short": lambda: machine.work("short", 0.25), "long": lambda: machine.work("long", 3.0)}
    found = interleaved(arms, lambda: machine.now, rounds=2, warm_up=2, at_least=1.0)
    assert machine.calls == ["short", "long"] * 2 + (["short"] * 4 + ["long"]) * 2
    assert found["short"].median_ms == 250 and found["long"].median_ms == 3000


def test_a_clock_of_the_cpu_goes_on() -> None:
    clock = device_clock(torch.device("cpu"))
    assert clock() <= clock()
