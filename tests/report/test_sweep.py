from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hybridprune.errors import UserError
from hybridprune.report.sweep import Sweep, read_sweep

POINTS: list[dict[str, Any]] = [{"flops": 3e9, "accuracy": 0.7, "later": "ignored"}, {"flops": 1e9, "accuracy": 0.5}]


def write(folder: Path, content: object) -> Path:
    (folder / "sweep.json").write_text(json.dumps(content))
    return folder


def test_curves_are_read_by_rising_flops(tmp_path: Path) -> None:
    assert read_sweep(tmp_path) is None
    assert read_sweep(write(tmp_path, POINTS)) == Sweep([(1e9, 0.5), (3e9, 0.7)], None)
    tested = [{**point, "test_flops": point["flops"] / 2, "test_accuracy": 0.25} for point in POINTS]
    assert read_sweep(write(tmp_path, tested)) == Sweep([(1e9, 0.5), (3e9, 0.7)], [(5e8, 0.25), (1.5e9, 0.25)])
    assert read_sweep(write(tmp_path, [tested[0], POINTS[1]])) == Sweep([(1e9, 0.5), (3e9, 0.7)], None)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, "points is {}"),
        ([], "holds no points"),
        ([3], "flops is missing"),
        ([{"flops": 1e9}], "accuracy is missing"),
        ([{"flops": -1, "accuracy": 0.5}], "flops is -1"),
        ([{"flops": 1, "accuracy": 1.5}], "accuracy is 1.5"),
        ([{"flops": 1, "accuracy": 0.5, "test_accuracy": 0.5}], "test_flops is missing"),
    ],
)
def test_what_is_no_sweep_names_the_file_and_the_fault(content: object, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"sweep\.json: .*run hybridprune curve again") as error:
        read_sweep(write(tmp_path, content))
    assert words in str(error.value) and "\n" not in str(error.value)
