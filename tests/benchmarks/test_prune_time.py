"""benchmarks/prune_time.py: a network is cut as its cell says, and timed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from benchmarks.converged import Cell
from benchmarks.prune_time import row
from tests.benchmarks.test_converged import bench as bench  # a fixture


@pytest.mark.full
def test_a_row_says_what_was_cut_and_how_long_it_took(bench, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    name, wall, cores, share, accuracy = row(dataclasses.replace(bench, work=tmp_path), Cell(8, 0.6), 0)
    assert name == "ResNet-8 to 0.6" and float(wall) >= 0 and float(cores) >= 0
    assert float(share) == pytest.approx(0.6, abs=0.05) and 0 <= float(accuracy) <= 100
