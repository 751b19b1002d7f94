from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hybridprune.errors import UserError
from hybridprune.report.records import read_run, read_runs, unfinished_runs
from tests.report.run_folders import result, write, write_bench


def test_reads_the_fields_where_they_stand(tmp_path: Path) -> None:
    record = read_run(write(tmp_path / "run", result("prune", "p0", "s0", seed=7)))
    assert (record.stage, record.run_id, record.parent_id, record.seed) == ("prune", "p0", "s0", 7)
    assert (record.network, record.dataset) == ("resnet32-w16", "tree")
    assert (record.backbone_params, record.gate_params, record.dense_params) == (200_000, 3000, 400_000)
    assert (record.backbone_macs, record.routed_macs, record.dense_macs) == (
        25_000_000,
        18_750_000,
        50_000_000,
    )
    assert (record.always_on_accuracy, record.routed_accuracy, record.routed_rate) == (0.7, 0.575, 0.7)
    assert record.effective_sparsity == 0.625


def test_results_without_effective_sparsity_are_read(tmp_path: Path) -> None:
    data = result("prune", "p0")
    del data["effective_sparsity"]
    assert read_run(write(tmp_path / "run", data)).effective_sparsity is None


@pytest.mark.parametrize("reading", ["always_on", "routed"])
def test_a_loss_of_null_is_one_that_is_not_finite(reading: str, tmp_path: Path) -> None:
    assert read_run(write(tmp_path / "run", result("prune", "p0"))).finite
    spoilt = result("prune", "p0", **{f"test__{reading}__loss": None})
    assert not read_run(write(tmp_path / "spoilt", spoilt)).finite


def test_reads_what_was_measured_beside_it_and_refuses_what_is_broken(tmp_path: Path) -> None:
    path = write(tmp_path / "run", result("prune", "p0"))
    assert read_run(path).bench == ()
    write_bench(path.parent, {("deployed", "eager"): 4.0})
    assert [(m.network, m.median_ms) for m in read_run(path).bench] == [("deployed", 4.0)]
    (path.parent / "bench.json").write_text("{")
    with pytest.raises(UserError, match=r"bench\.json"):
        read_run(path)


def test_reads_the_network_of_results_that_name_depth_and_width(tmp_path: Path) -> None:
    old = result("sp", "s0", network={"name": "resnet", "depth": 20, "width": 64})
    assert read_run(write(tmp_path / "run", old)).network == "resnet20-w64"


def test_reads_test_figures_not_validation_figures(tmp_path: Path) -> None:
    data = result("sp", "s0", validation__always_on__accuracy=0.99, validation__routed__accuracy=0.98)
    record = read_run(write(tmp_path / "run", data))
    assert (record.always_on_accuracy, record.routed_accuracy) == (0.75, 0.625)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"format": 2}, "format 2"),
        ({"format": "1"}, "format"),
        ({"seed": True}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"params__backbone": "many"}, "params.backbone"),
        ({"macs__backbone": -1}, "macs.backbone"),
        ({"dense__macs": 0}, "dense.macs"),
        ({"effective_sparsity": "half"}, "effective_sparsity"),
        ({"members": 3}, "members"),
        ({"members": [{}]}, "run_id"),
        ({"effective_sparsity": 1.5}, "effective_sparsity"),
        ({"test__always_on__accuracy": 65.0}, "test.always_on.accuracy"),
        ({"test__routed__accuracy": float("nan")}, "test.routed.accuracy"),
        ({"test__routed__expected_macs": float("inf")}, "test.routed.expected_macs"),
        ({"test__routed": None}, "test.routed.accuracy is missing"),
        ({"parent": {"path": "x"}}, "parent.run_id is missing"),
        ({"dataset": {}}, "dataset.name is missing"),
    ],
)
def test_wrong_values_are_user_errors_that_name_file_and_field(
    tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    path = write(tmp_path / "run", result("sp", "s0", **changes))
    with pytest.raises(UserError) as caught:
        read_run(path)
    assert str(path) in str(caught.value) and named in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("stage", ["train", ["sp"], None])
def test_unknown_stage_is_a_user_error(tmp_path: Path, stage: object) -> None:
    path = write(tmp_path / "run", result("sp", "s0") | {"stage": stage})
    with pytest.raises(UserError, match="stage"):
        read_run(path)


def test_a_missing_parent_is_not_taken_for_none(tmp_path: Path) -> None:
    data = result("rl", "r0")
    del data["parent"]
    with pytest.raises(UserError, match="parent is missing"):
        read_run(write(tmp_path / "run", data))


@pytest.mark.parametrize("content", [b"", b'{"format": 1', b"\xff\xfe", b"[]", b"3", b"null"])
def test_corrupt_files_are_user_errors(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "result.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"result\.json"):
        read_runs(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 2}', "{}"])
def test_one_broken_or_newer_run_is_passed_over_and_told(content: str, tmp_path: Path) -> None:
    write(tmp_path / "a", result("sp", "good"))
    broken = write(tmp_path / "b", result("sp", "broken"))
    broken.write_text(content)
    told: list[str] = []
    assert [record.run_id for record in read_runs(tmp_path, told.append)] == ["good"]
    (line,) = told
    assert line.startswith(f"not counted: {broken}: ") and "\n" not in line
    with pytest.warns(UserWarning, match=f"not counted: {broken}"):
        read_runs(tmp_path)
    with pytest.raises(UserError, match=str(broken)):  # the one that is asked for
        read_runs(broken.parent, told.append)
    (tmp_path / "a" / "result.json").unlink()
    with pytest.raises(UserError, match=f"{tmp_path}: no run that can be read, but {broken}: "):
        read_runs(tmp_path, told.append)


def test_finds_runs_at_any_depth_and_the_folder_itself(tmp_path: Path) -> None:
    write(tmp_path / "a" / "b" / "c", result("sp", "deep"))
    write(tmp_path / "z", result("sp", "flat"))
    assert [record.run_id for record in read_runs(tmp_path)] == ["deep", "flat"]
    assert [record.run_id for record in read_runs(tmp_path / "z")] == ["flat"]


def test_no_folder_and_no_finished_run_are_user_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        read_runs(tmp_path / "missing")
    with pytest.raises(UserError, match=r"no finished run.*result\.json"):
        read_runs(tmp_path)


def test_unfinished_runs_are_begun_folders_without_a_result(tmp_path: Path) -> None:
    write(tmp_path / "sweep" / "done", result("sp", "s0"))
    (tmp_path / "sweep" / "config.json").write_text("{}")
    (tmp_path / "sweep" / "done" / "spec.json").write_text("{}")
    for name, file in (("late", "config.json"), ("cut", "spec.json"), ("other", "notes.json")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("{}")
    assert unfinished_runs(tmp_path) == [tmp_path / "cut", tmp_path / "late"]
