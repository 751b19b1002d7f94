"""benchmarks/latency_budget.py: lines are measured once, and the tables say what they hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import latency_budget
from benchmarks.results_log import read_lines
from tests.latency.machine import Machine, machine

__all__ = ["machine"]


@pytest.mark.full
def test_lines_and_tables(machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--work", str(tmp_path), "--networks", "resnet:8:4", "--engines", "eager", "--batches", "1"]
    flags += ["--methods", "fisher-tucker", "l1", "--targets", "0.8", "--plans", "8", "--threads", "1"]
    latency_budget.main(flags)
    lines = read_lines(tmp_path / "latency_budget.jsonl")
    assert [(line["kind"], line["method"]) for line in lines] == [
        (kind, method) for method in ("fisher-tucker", "l1") for kind in ("budget", "predictions")
    ]
    for line in lines[::2]:
        assert line["met"] and line["again"] == pytest.approx(line["realised_ms"] / line["dense_ms"], rel=1e-6)
    told = capsys.readouterr().out
    assert told.count("| yes, again yes") == 2 and "| ResNet-8, 4 | eager | 1 | l1 | 8 |" in told
    timed = len(machine.timed)
    latency_budget.main([*flags, "--table"])
    latency_budget.main(flags)
    assert len(machine.timed) == timed and capsys.readouterr().out.startswith(told)


def test_predictions_are_compared_by_rank_and_by_error() -> None:
    line = {"kind": "predictions", "network": "resnet:8:4", "engine": "eager", "batch": 1, "method": "l1", "plans": 3}
    line |= {"predicted": [0.5, 0.6, 0.9], "realised": [0.5, 0.66, 0.99], "flops": [0.9, 0.8, 0.7]}
    *_, row = "\n".join(latency_budget.tables([line])).splitlines()
    assert row == "| ResNet-8, 4 | eager | 1 | l1 | 3 | 1.000 | 9.1 | -1.000 | 29.3 |"
