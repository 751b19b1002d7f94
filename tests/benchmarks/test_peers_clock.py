"""benchmarks/peers_clock.py: every network in every engine, with the accuracy of all of its seeds."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.converged import DENSE, METHODS, RESULTS, Cell
from benchmarks.peers_clock import EPOCHS, SHOWN, Arm, accuracy, table
from benchmarks.results_log import read_lines


def network(channels: int) -> nn.Sequential:
    torch.manual_seed(0)
    convs = [nn.Conv2d(3, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)]
    return nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 4)).eval()


@pytest.mark.full
def test_networks_are_timed_in_each_engine() -> None:
    found = table(
        [Arm("large", network(64)), Arm("small", network(4), "70.00 (1)")],
        torch.randn(4, 3, 24, 24),
        ["eager", "onnxruntime"],
        1,
        5,
    )
    (_, *large), (_, *small) = found.body
    assert tuple(found.head) == ("Network", "MMACs", "Accuracy %", "eager", "onnxruntime")
    assert (large[0], small[:2]) == ("22.2", ["0.1", "70.00 (1)"])
    assert all(float(a) > 2 * float(b) for a, b in zip(large[2:], small[2:], strict=True))


def test_the_accuracy_is_the_mean_of_the_seeds() -> None:
    cell = Cell(56, 0.32)
    line = {"network": "resnet56", "target": 0.32, "budget": None, "method": "taylor", "epochs": EPOCHS}
    lines = [{**line, "seed": 0, "report": 0.7}, {**line, "seed": 1, "report": 0.71}, {**line, "seed": 0, "epochs": 1}]
    assert accuracy(lines, cell, "taylor") == "70.50 (2)"
    assert accuracy(lines, Cell(56, 0.55), "taylor") == accuracy(lines, cell, "uniform") == ""


def test_what_is_shown_was_trained() -> None:
    lines = read_lines(RESULTS)
    for name in SHOWN:
        method = name.partition(" ")[2]
        assert method in (*METHODS, DENSE)
    assert sum(accuracy(lines, Cell.of(name.split()[0]), name.partition(" ")[2]) == "" for name in SHOWN) <= 2
