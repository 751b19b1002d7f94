"""Recorded lines become tables, with differences of the same test images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import hybrid_arms, hybrid_bench
from benchmarks.hybrid_tables import difference, show, table
from benchmarks.results_log import Line, append_line, pack, read_lines, unpack
from hybridprune.report.bootstrap import paired_bootstrap

IMAGES = 500


def line(arm: str, correct: np.ndarray, **more: Any) -> Line:
    shared = {"depth": 32, "f1": 0.25, "f2": 0.18, "epochs": [1, 1], "seed": 0, "share": 0.18, "images": len(correct)}
    return {"arm": arm, **shared, "accuracy": float(correct.mean()), "correct": pack(correct), **more}


def some(seed: int, share: float, images: int = IMAGES) -> np.ndarray:
    return np.random.default_rng(seed).random(images) < share


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("|").split("|")]


@pytest.mark.parametrize("images", [1, 7, 8, 13])
def test_what_is_packed_comes_back(images: int) -> None:
    correct = some(images, 0.5, images)
    assert unpack(pack(correct), images).tolist() == correct.tolist()


def test_a_difference_is_in_points_of_the_same_images() -> None:
    correct, other = some(1, 0.6), some(2, 0.5)
    a, b = line("a", correct), line("b", other)
    mean, interval = difference(a, "correct", b, "correct").split(" ", 1)
    low, high = (float(each) for each in interval.strip("[]").split(", "))
    assert float(mean) == pytest.approx(100 * (correct.mean() - other.mean()), abs=0.005)
    # The oracle: a difference's standard error, two-sided 95 %.
    paired = correct.astype(float) - other.astype(float)
    error = 100 * paired.std() / IMAGES**0.5
    assert (low, high) == pytest.approx((float(mean) - 1.96 * error, float(mean) + 1.96 * error), abs=0.25 * error)
    assert difference(a, "correct", a, "correct") == "+0.00 [+0.00, +0.00]"
    assert difference(b, "correct", a, "correct").startswith(f"{-float(mean):+.2f} ")


def test_rows_are_sorted_and_say_what_was_recorded() -> None:
    worse, static, better, replayed = some(1, 0.4), some(2, 0.5), some(3, 0.6), some(4, 0.45)
    routed = {"replayed_correct": pack(replayed), "always_on": 0.625, "distinct_routes": 7}
    lines = [line("worse", worse), line("static at F2", static, share=0.1799), line("better", better, **routed)]
    heading, rule, *rows = table(lines).strip().splitlines()
    assert cells(heading)[3:5] == ["over static at F2", "replayed costs"] and len(cells(rule)) == 7
    assert [cells(row)[0] for row in rows] == ["better", "static at F2", "worse"]

    def bootstrap(a: np.ndarray, b: np.ndarray) -> str:
        found = paired_bootstrap(a, b)
        return f"{100 * found.mean:+.2f} [{100 * found.low:+.2f}, {100 * found.high:+.2f}]"

    accuracies = [f"{100 * correct.mean():.2f}" for correct in (better, static, worse)]
    over, replay = bootstrap(better, static), bootstrap(better, replayed)
    assert cells(rows[0]) == ["better", "18.00", accuracies[0], over, replay, "62.50", "7"]
    assert cells(rows[1]) == ["static at F2", "17.99", accuracies[1], "", "", "", ""]
    assert cells(rows[2]) == ["worse", "18.00", accuracies[2], bootstrap(worse, static), "", "", ""]
    # Without the arm that others are compared with, nothing is.
    assert cells(table(lines[:1]).strip().splitlines()[2])[3] == ""


def test_each_setting_has_a_table_and_all_are_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, picture = tmp_path / "lines.jsonl", tmp_path / "docs" / "arms.png"
    for seed in (1, 0):
        for arm in ("gumbel", "static at F2"):
            append_line(results, {**line(arm, some(seed, 0.5)), "seed": seed})
    show(results, picture)
    parts = capsys.readouterr().out.split("ResNet-32, F1 = 25%, F2 = 18%, 1 + 1 epochs, seed ")
    assert [part[0] for part in parts[1:]] == ["0", "1"]
    assert all(part.count("| gumbel |") == part.count("| static at F2 |") == 1 for part in parts[1:])
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_recorded_lines_are_of_arms_that_exist_and_agree_with_themselves() -> None:
    lines = read_lines(hybrid_arms.RESULTS)
    names = {*hybrid_bench.STATIC_NAMES, *hybrid_bench.DYNAMIC_ARMS, *hybrid_bench.CONTROLS}
    assert len(lines) > 0
    for each in lines:
        assert each["arm"].removeprefix(hybrid_bench.RANDOM_LIKE) in names
        assert unpack(each["correct"], each["images"]).mean() == pytest.approx(each["accuracy"])
        if "replayed" in each:
            assert unpack(each["replayed_correct"], each["images"]).mean() == pytest.approx(each["replayed"])
