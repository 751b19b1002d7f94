from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridprune.report import Row, collect
from hybridprune.report.rows import Stat
from tests.report.run_folders import DENSE_MACS, result, write, write_lineage


def names(rows: list[Row]) -> list[str]:
    return [row.name for row in rows]


def means(row: Row) -> dict[str, float]:
    return {name: stat.mean for name, stat in row.stats.items()}


def test_figures_of_the_three_stages_in_closed_form(tmp_path: Path) -> None:
    write_lineage(tmp_path)
    dense, static, dynamic = collect(tmp_path)
    assert means(dense) == {
        "accuracy": 0.75, "flops": 100_000_000, "macs": 50_000_000, "dense_share": 1.0, "params": 400_000,
        "compression": 0.0, "effective_sparsity": 0.0, "routed_rate": 0.7, "routed_accuracy": 0.625,
        "routed_flops": 75_000_000, "stored_bytes": 1_900_000,
    }  # fmt: skip
    assert means(static) == {
        "accuracy": 0.7, "flops": 50_000_000, "macs": 25_000_000, "dense_share": 0.5, "params": 200_000,
        "compression": 0.5, "effective_sparsity": 0.625, "routed_rate": 0.7, "routed_accuracy": pytest.approx(0.575),
        "routed_flops": 37_500_000, "stored_bytes": 1_900_000,
    }  # fmt: skip
    assert means(dynamic) == {
        "accuracy": pytest.approx(0.595), "flops": 37_500_000, "macs": 18_750_000, "dense_share": 0.375,
        "params": 203_000, "compression": pytest.approx(1 - 203 / 400), "effective_sparsity": 0.625,
        "routed_rate": 0.7,
        "routed_accuracy": pytest.approx(0.595), "routed_flops": 37_500_000, "stored_bytes": 1_900_000,
    }  # fmt: skip
    assert all(stat.std is None for row in (dense, static, dynamic) for stat in row.stats.values())
    assert isinstance(static.stats["macs"].mean, int) and isinstance(static.stats["params"].mean, int)


def test_a_figure_that_a_run_does_not_have_is_missing_from_its_row(tmp_path: Path) -> None:
    for seed in range(2):
        data = result("prune", f"p{seed}", seed=seed)
        if seed:
            del data["effective_sparsity"]
        write(tmp_path / str(seed), data)
    (row,) = collect(tmp_path)
    assert row.seeds == (0, 1) and "effective_sparsity" not in row.stats
    assert row.stats["compression"] == Stat(0.5, 0.0)


def test_the_methods_of_a_row_are_those_of_all_its_cuts_the_first_one_first(tmp_path: Path) -> None:
    write(tmp_path / "sp", result("sp", "s0"))
    write(tmp_path / "1", result("prune", "p1", "s0", group="1", method="l1", macs__backbone=30_000_000))
    write(tmp_path / "2", result("prune", "p2", "p1", group="2", method="fisher-tucker"))
    write(tmp_path / "3", result("prune", "p3", "p2", group="3", method="l1", macs__backbone=10_000_000))
    old = result("prune", "p4", group="4", macs__backbone=5_000_000)
    del old["method"]
    write(tmp_path / "4", old)
    assert [row.method for row in collect(tmp_path)] == ["", "l1", "l1, fisher-tucker", "l1, fisher-tucker", ""]


def test_gates_can_make_compression_negative(tmp_path: Path) -> None:
    write(tmp_path / "rl", result("rl", "r0", None, params__backbone=400_000))
    (row,) = collect(tmp_path)
    assert row.name == "dynamic only"
    assert row.stats["compression"].mean == pytest.approx(-3000 / 400_000)


def test_seeds_of_a_group_are_one_row_with_numpys_mean_and_sample_deviation(tmp_path: Path) -> None:
    accuracy = (0.7, 0.725, 0.64)
    write_lineage(tmp_path, seeds=(2, 0, 1), accuracy=accuracy)
    rows = collect(tmp_path)
    assert names(rows) == ["without pruning", "static only", "static + dynamic"]
    assert [row.seeds for row in rows] == [(0, 1, 2)] * 3
    stat = rows[1].stats["accuracy"]
    assert stat.mean == pytest.approx(np.mean(accuracy), rel=1e-14)
    assert stat.std == pytest.approx(np.std(accuracy, ddof=1), rel=1e-12)
    assert rows[0].stats["accuracy"] == Stat(0.75, 0.0)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8))
def test_statistics_agree_with_numpy(values: list[float]) -> None:
    stat = Stat.of(values)
    assert stat.mean == pytest.approx(np.mean(values), abs=1e-12)
    assert stat.std == pytest.approx(np.std(values, ddof=1), abs=1e-12)


def test_other_group_other_stage_and_other_data_are_other_rows(tmp_path: Path) -> None:
    write(tmp_path / "1", result("sp", "a", group="g"))
    write(tmp_path / "2", result("sp", "b", group="h"))
    write(tmp_path / "3", result("prune", "c", "a", group="g"))
    write(tmp_path / "4", result("sp", "d", group="g", dataset__digest="d2", seed=1))
    rows = collect(tmp_path)
    assert sorted(row.lineage[-1] for row in rows) == [
        ("prune", "g", "d1"),
        ("sp", "g", "d1"),
        ("sp", "g", "d2"),
        ("sp", "h", "d1"),
    ]
    assert all(len(row.seeds) == 1 for row in rows)


def test_a_subtask_stands_by_itself_and_says_so(tmp_path: Path) -> None:
    write(tmp_path / "1", result("sp", "a"))
    write(tmp_path / "2", result("prune", "b", "a", config={"classes": []}))
    write(tmp_path / "3", result("prune", "c", "a", group="h", config={"classes": ["bear", "otter"]}))
    *whole, some = sorted(collect(tmp_path), key=lambda row: len(row.dataset))
    assert [row.dataset for row in whole] == ["tree", "tree"] and some.dataset == "tree (2 of 100 classes)"
    assert whole[0].family == whole[1].family != some.family


def test_a_repeat_with_equal_seeds_counts_once_and_the_newest_wins(tmp_path: Path) -> None:
    write(tmp_path / "1", result("sp", "a", test__always_on__accuracy=0.5), age=10)
    write(tmp_path / "2", result("sp", "b", test__always_on__accuracy=0.6), age=0)
    write(tmp_path / "3", result("sp", "c", test__always_on__accuracy=0.7), age=20)
    write(tmp_path / "copy-of-3", result("sp", "c", test__always_on__accuracy=0.7), age=20)
    (row,) = collect(tmp_path)
    assert row.seeds == (0,)
    assert row.stats["accuracy"] == Stat(0.6, None)


def test_equal_seeds_from_parents_of_other_seeds_are_no_repeat(tmp_path: Path) -> None:
    write(tmp_path / "s0", result("sp", "s0", seed=0))
    write(tmp_path / "s1", result("sp", "s1", seed=1))
    write(tmp_path / "p0", result("prune", "p0", "s0"))
    write(tmp_path / "p1", result("prune", "p1", "s1"))
    assert collect(tmp_path)[1].seeds == (0, 0)


def test_one_known_parent_places_the_row_and_unknown_parents_make_no_repeats(tmp_path: Path) -> None:
    write(tmp_path / "s", result("sp", "s1", seed=1))
    for run_id, parent in (("p0", "lost"), ("p1", "s1"), ("p2", "gone")):
        write(tmp_path / run_id, result("prune", run_id, parent))
    row = collect(tmp_path)[1]
    assert row.seeds == (0, 0, 0)
    assert row.lineage == (("sp", "sp-group", "d1"), ("prune", "prune-group", "d1"))


def test_children_follow_their_parent_and_families_stay_together(tmp_path: Path) -> None:
    deep: dict[str, Any] = {"network__label": "resnet110-w16", "dense__macs": 10 * DENSE_MACS}
    write(tmp_path / "1", result("sp", "D", group="D", **deep))
    write(tmp_path / "2", result("rl", "d2", "d1", group="d2", **deep))
    write(tmp_path / "3", result("prune", "d1", "D", group="d1", **deep))
    write(tmp_path / "4", result("rl", "only", "A", group="only", params__backbone=400_000))
    write(tmp_path / "5", result("prune", "small", "A", group="small", macs__backbone=10_000_000))
    write(tmp_path / "6", result("rl", "small+", "small", group="small+"))
    write(tmp_path / "7", result("prune", "large", "A", group="large", macs__backbone=30_000_000))
    write(tmp_path / "8", result("rl", "large+", "large", group="large+"))
    write(tmp_path / "9", result("sp", "A", group="A"))
    rows = collect(tmp_path)
    order = ["A", "large", "large+", "small", "small+", "only", "D", "d1", "d2"]
    assert [row.lineage[-1][1] for row in rows] == order
    assert [row.network for row in rows] == ["resnet32-w16"] * 6 + ["resnet110-w16"] * 3
    assert rows[2].lineage == (("sp", "A", "d1"), ("prune", "large", "d1"), ("rl", "large+", "d1"))
    assert names(rows)[:6] == [
        "without pruning",
        *["static only", "static + dynamic"] * 2,
        "dynamic only",
    ]


@pytest.mark.parametrize(
    ("params", "parent", "name"),
    [
        (200_000, "lost", "static + dynamic"),
        (400_000, "lost", "dynamic only"),
        (200_000, None, "dynamic only"),
    ],
)
def test_name_of_a_dynamic_run_without_a_known_parent(
    tmp_path: Path, params: int, parent: str | None, name: str
) -> None:
    write(tmp_path / "rl", result("rl", "r0", parent, params__backbone=params))
    assert names(collect(tmp_path)) == [name]


def test_a_pruned_grandparent_counts_and_a_dense_chain_does_not(tmp_path: Path) -> None:
    write(tmp_path / "s", result("sp", "s"))
    write(tmp_path / "p", result("prune", "p", "s", group="p"))
    write(tmp_path / "r1", result("rl", "r1", "p", group="r1"))
    write(tmp_path / "r2", result("rl", "r2", "r1", group="r2", params__backbone=400_000))
    write(tmp_path / "r3", result("rl", "r3", "s", group="r3"))
    rows = {row.lineage[-1][1]: row.name for row in collect(tmp_path)}
    assert rows["r2"] == "static + dynamic"  # by its ancestors, whatever its size
    assert rows["r3"] == "dynamic only"


def test_runs_that_name_each_other_as_parents_end_in_rows_all_the_same(tmp_path: Path) -> None:
    write(tmp_path / "1", result("prune", "a", "b", group="a"))
    write(tmp_path / "2", result("rl", "b", "a", group="b"))
    rows = collect(tmp_path)
    assert sorted(names(rows)) == ["static + dynamic", "static only"]
    assert [len(row.lineage) for row in rows] == [2, 2]


@pytest.mark.parametrize(
    ("members", "name"),
    [(("p", "s"), "static + dynamic"), (("s", "s2"), "dynamic only"), (("lost", "s"), "dynamic only")],
)
def test_a_cascade_with_a_cut_member_is_static_too(tmp_path: Path, members: tuple[str, str], name: str) -> None:
    write(tmp_path / "s", result("sp", "s"))
    write(tmp_path / "s2", result("sp", "s2", group="s2", network__label="resnet20-w16"))
    write(tmp_path / "p", result("prune", "p", "s2", group="p"))
    named = {"name": "cascade", "label": "cascade-resnet20-w16-resnet32-w16"}
    joined = {"network": named, "members": [{"run_id": each} for each in members], "params__backbone": 600_000}
    write(tmp_path / "c", result("rl", "c", "s", group="c", **joined))
    (row,) = [row for row in collect(tmp_path) if row.lineage[-1][1] == "c"]
    assert (row.name, row.cascade) == (name, True)
    assert sum(each.cascade for each in collect(tmp_path)) == 1
