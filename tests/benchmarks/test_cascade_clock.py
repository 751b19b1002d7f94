"""benchmarks/cascade_clock.py: cascades of untrained networks, and the arithmetic of its table by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.cascade_clock import cascade, main, row, runs, table
from benchmarks.results_log import read_lines

LINE = {
    "cascade": "20,32",
    "width": 16,
    "batch": 1,
    "threads": 2,
    "ms": {"large": 4.0, "eager": 3.2, "without gates": 3.0, "deployed": 2.5, "large, deployed": 3.0},
    "rates": [0.25],
    "predicted": 1.25,
}


def test_a_row_by_hand() -> None:
    # 4 / 3.2 = 1.25, 4 / 3 = 1.33, 4 / 2.5 = 1.6, 3 / 2.5 = 1.2
    expected = ("20,32", "16", "1", "1.25", "1.25", "1.00", "1.33", "1.07", "1.60", "1.28", "1.20", "0.96")
    assert row(LINE) == expected


def test_the_newest_line_is_shown() -> None:
    again = {**LINE, "predicted": 2.5}
    other = {**LINE, "threads": 1}
    shown = table([LINE, other, again])
    assert shown.count("\n") == 3 and "| 2.50 |" in shown and "| 1.25 |" in shown


@pytest.mark.parametrize("members", ["8,14", "8:0.5,8,14"])
def test_each_gate_sends_on_the_share(members: str) -> None:
    images = torch.randn(40, 3, 32, 32)
    net = cascade(members, 4, images, 0.3)
    with torch.inference_mode():
        rates = net(images, mode="executed").decisions.mean(0).tolist()
    assert rates == pytest.approx([0.3, 0.1][: net.num_gates])


def test_each_member_runs_on_the_images_that_come_as_far() -> None:
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 2, 2)
    found = runs(images, torch.tensor([[1.0, 1.0], [0.0, 1.0], [1.0, 0.0], [0.0, 0.0]]))
    assert [(k, inputs[:, 0, 0, 0].tolist()) for k, inputs in found] == [(0, [0, 1, 2, 3]), (1, [0, 2]), (2, [0])]
    assert [k for k, _ in runs(images, torch.zeros(4, 2))] == [0]


@pytest.mark.full
def test_a_measurement(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "lines.jsonl"
    words = ["--cascades", "8,14", "--widths", "4", "--batches", "1", "3", "--rounds", "1", "--threads", "1"]
    threads = torch.get_num_threads()
    main([*words, "--file", str(file)])
    torch.set_num_threads(threads)
    lines = read_lines(file)
    assert [line["batch"] for line in lines] == [1, 3] and all(1 < line["predicted"] < 2 for line in lines)
    assert all(set(line["ms"]) == set(LINE["ms"]) and min(line["ms"].values()) > 0 for line in lines)
    printed = capsys.readouterr().out
    main(["--tables", "--file", str(file)])
    assert printed.endswith(capsys.readouterr().out)
