from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hybridprune.errors import UserError
from hybridprune.report.html.bench import Measurement, average, read_bench

ROW: dict[str, Any] = {
    "network": "dense", "form": "eager", "median_ms": 8.0, "images_per_second": 4000,
    "predicted_speedup": 4.0, "realised_speedup": 3.0, "later": "ignored",
}  # fmt: skip
TABLE = {"batch": 32, "device": "cpu", "rows": [ROW]}


def write(folder: Path, content: object) -> Path:
    (folder / "bench.json").write_text(json.dumps(content))
    return folder


def test_one_table_or_several_are_read(tmp_path: Path) -> None:
    assert read_bench(tmp_path) == []
    expected = Measurement(32, "cpu", "dense", "eager", 8.0, 4000, 4.0, 3.0)
    assert read_bench(write(tmp_path, TABLE)) == [expected]
    several = read_bench(write(tmp_path, [TABLE, TABLE | {"batch": 1, "rows": [ROW, ROW | {"network": "deployed"}]}]))
    assert [(m.batch, m.network) for m in several] == [(32, "dense"), (1, "dense"), (1, "deployed")]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"batch": 1}, "'rows' is missing"),
        ({"batch": 1, "rows": [ROW]}, "'device' is missing"),
        (TABLE | {"batch": "1"}, "batch"),
        (TABLE | {"batch": 1.5}, "batch"),
        (TABLE | {"rows": [ROW | {"median_ms": 0}]}, "median_ms"),
        (TABLE | {"rows": [ROW | {"images_per_second": True}]}, "images_per_second"),
        (TABLE | {"rows": [{}]}, "missing"),
        (TABLE | {"rows": 3}, "bench.json"),
        ([3], "bench.json"),
    ],
)
def test_another_schema_is_a_users_mistake(tmp_path: Path, content: object, words: str) -> None:
    with pytest.raises(UserError, match=words) as raised:
        read_bench(write(tmp_path, content))
    assert "bench.json" in str(raised.value) and "hybridprune.bench" in str(raised.value)


def test_runs_are_averaged_setting_by_setting() -> None:
    def measured(ms: float, realised: float | None, form: str = "eager") -> Measurement:
        return Measurement(1, "cpu", "prune", form, ms, 1000 / ms, 4.0, realised)

    both, onnx = average(7, [[measured(2.0, 2.0)], [measured(4.0, 3.0), measured(1.0, None, "onnx")]])
    assert (both.row, both.runs, both.median_ms, both.images_per_second) == (7, 2, 3.0, 375.0)
    assert (both.realised_speedup, both.realised_share) == (2.5, 2.5 / 4)
    assert (onnx.runs, onnx.form, onnx.realised_speedup, onnx.realised_share) == (1, "onnx", None, None)
    assert both.setting == (1, "eager", "cpu")
