"""benchmarks/peers_clock.py: every network in every engine, with the accuracy of all of its seeds."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.converged import DENSE, METHODS, OURS, RESULTS, Cell
from benchmarks.peers_clock import (
    EPOCHS,
    PEER,
    SHOWN,
    Arm,
    accuracies,
    at_equal_accuracy,
    frontier,
    milliseconds,
    table,
)
from benchmarks.results_log import read_lines


def network(channels: int) -> nn.Sequential:
    torch.manual_seed(0)
    convs = [nn.Conv2d(3, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)]
    return nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 4)).eval()


@pytest.mark.full
def test_networks_are_timed_in_each_engine() -> None:
    nets, engines = {"large": network(64), "small": network(4)}, ["eager", "onnxruntime"]
    found = milliseconds(nets, torch.randn(4, 3, 24, 24), engines, 1, 5)
    assert found.keys() == {f"{engine}: {name}" for engine in engines for name in nets}
    assert all(found[f"{engine}: large"] > 2 * found[f"{engine}: small"] > 0 for engine in engines)


def test_times_stand_below_their_engine_and_batch() -> None:
    arms = [Arm("large", network(64)), Arm("small", network(4), OURS, (0.7,))]
    engines = ["eager", "onnxruntime"]
    times = {
        batch: {
            f"{engine}: {arm.name}": batch + 10.0 * i + 100 * j
            for i, engine in enumerate(engines)
            for j, arm in enumerate(arms)
        }
        for batch in (1, 3)
    }
    found = table(arms, times, engines)
    columns = [f"{engine}, batch {batch}" for engine in engines for batch in times]
    assert list(found.head) == ["Network", "MMACs", "Accuracy %", *columns]
    assert [list(row) for row in found.body] == [
        ["large", "39.5", "", "1", "3", "11", "13"],
        ["small", "0.3", "70.00 (1)", "101", "103", "111", "113"],
    ]


def test_the_accuracy_is_the_mean_of_the_seeds() -> None:
    cell = Cell(56, 0.32)
    line = {"network": "resnet56", "target": 0.32, "budget": None, "method": "taylor", "epochs": EPOCHS}
    lines = [{**line, "seed": 0, "report": 0.7}, {**line, "seed": 1, "report": 0.71}, {**line, "seed": 0, "epochs": 1}]
    assert accuracies(lines, cell, "taylor") == (0.7, 0.71)
    assert Arm("", network(4), "taylor", (0.7, 0.71)).percent == "70.50 (2)"
    assert accuracies(lines, Cell(56, 0.55), "taylor") == accuracies(lines, cell, "uniform") == ()


def test_at_equal_accuracy_a_peer_takes_a_time_between_its_neighbours() -> None:
    net = network(4)
    peers = [Arm("deep", net, PEER, (0.6,)), Arm("slow", net, PEER, (0.65,)), Arm("mild", net, PEER, (0.7, 0.72))]
    ours = [Arm("between", net, OURS, (0.66,)), Arm("better", net, OURS, (0.8,)), Arm("weak", net, OURS, (0.5,))]
    others = [Arm("channels", net, "bn-scale", (0.66,)), Arm("untrained", net, OURS)]
    clock = {"deep": 10.0, "slow": 30.0, "mild": 21.0, "between": 8.0, "better": 1.0, "weak": 1.0}
    times = {1: {f"eager: {name}": time for name, time in clock.items()}}
    found = at_equal_accuracy([*peers, *ours, *others], times, ["eager"])
    # 16 ms at 66 %, six elevenths of the way from 10 at 60 % to 21 at 71 %; the slow one is not on it
    assert [list(row) for row in found.body] == [["between", "66.00 (1)", "2.00"]]
    assert frontier([(0.6, 10), (0.65, 30), (0.71, 21), (0.71, 22)]) == [(0.6, 10), (0.71, 21)]


def test_what_is_shown_was_trained() -> None:
    lines = read_lines(RESULTS)
    for name in SHOWN:
        method = name.partition(" ")[2]
        assert method in (*METHODS, DENSE)
        assert accuracies(lines, Cell.of(name.split()[0]), method) or method == "bn-scale", name
