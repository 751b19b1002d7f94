from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hybridprune.errors import UserError
from hybridprune.report.bench import Measurement, read_bench

ROW: dict[str, Any] = {
    "network": "dense", "form": "eager", "median_ms": 8.0, "images_per_second": 4000,
    "predicted_speedup": 4.0, "realised_speedup": 3.0, "later": "ignored",
}  # fmt: skip
TABLE = {"batch": 32, "device": "cpu", "rows": [ROW]}


def write(folder: Path, content: object) -> Path:
    (folder / "bench.json").write_text(json.dumps(content))
    return folder


def test_one_table_or_several_are_read(tmp_path: Path) -> None:
    assert read_bench(tmp_path) == ()
    expected = Measurement(32, "cpu", "dense", "eager", 8.0, 4000, 4.0, 3.0)
    assert read_bench(write(tmp_path, TABLE)) == (expected,)
    several = read_bench(write(tmp_path, [TABLE, TABLE | {"batch": 1, "rows": [ROW, ROW | {"network": "deployed"}]}]))
    assert [(m.batch, m.network) for m in several] == [(32, "dense"), (1, "dense"), (1, "deployed")]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"batch": 1}, "'rows' is missing"),
        ({"batch": 1, "rows": [ROW]}, "'device' is missing"),
        (TABLE | {"batch": "1"}, "batch"),
        (TABLE | {"batch": 1.5}, "batch"),
        (TABLE | {"threads": 0}, "threads"),
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
    assert "bench.json" in str(raised.value) and "measure again with hybridprune bench" in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"threads": 2}, "cpu, 2 threads"),
        ({"threads": 1, "hardware": {"name": "EPYC\n 7B13", "cpu": "other"}}, "cpu, EPYC 7B13, 1 thread"),
        ({"device": "cuda:0", "hardware": {"name": "A100"}}, "cuda:0, A100"),
        ({"hardware": "?"}, "cpu"),
    ],
)
def test_a_place_is_all_that_latencies_must_have_in_common(tmp_path: Path, changes: dict[str, Any], place: str) -> None:
    (found,) = read_bench(write(tmp_path, TABLE | changes))
    assert found.place == place
