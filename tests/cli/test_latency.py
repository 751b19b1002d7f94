"""Budgets of time in stage 2: flags, refusals, what a run writes, and its row in the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import hybridprune
from tests.cli.tiny_runs import assert_refused, contents, folder_of, run_here, stage
from tests.latency.machine import Machine, machine

__all__ = ["machine"]
TIME = ("--target_flops", "none", "--target_latency", "0.7", "--latency_batch", "4", "--epochs_end", "1")


@pytest.mark.full
def test_a_run_to_a_budget_of_time(finished: Path, tmp_path: Path, machine: Machine) -> None:
    where = ("--checkpoint_file", folder_of(finished, "sp"), "--result_dir", tmp_path / "timed")
    planned = stage("prune", *where, *TIME, "--epochs_start", "1", "--dry-run")
    assert planned.returncode == 0 and "a batch of 4 takes" in planned.stdout, planned.stderr
    done = stage("prune", *where, *TIME, "--epochs_start", "1")
    assert done.returncode == 0, done.stderr
    assert "a batch of 4 takes" in done.stderr and "wanted 0.7 of it, predicted" in done.stdout
    run = folder_of(tmp_path / "timed", "prune")
    record = json.loads((run / "result.json").read_text())["latency"]
    assert record["met"] and 0.65 < record["realised_ms"] / record["dense_ms"] < 0.735
    assert record["engine"] == "eager" and record["batch"] == 4 and record["points"] > 10
    config = json.loads((run / "config.json").read_text())
    assert config["target_latency"] == 0.7 and config["latency_batch"] == 4 and config["latency_engine"] == "eager"
    told = run_here("hybridprune.report", tmp_path / "timed", "--format", "json")
    (row,) = json.loads(told.stdout)["rows"]
    assert row["target_ms"] == pytest.approx(record["target_ms"]) and row["realised_ms"] == record["realised_ms"]
    head = run_here("hybridprune.report", tmp_path / "timed").stdout.splitlines()[0]
    assert "| Target ms | Predicted ms | Realised ms |" in head
    assert "Target ms" not in run_here("hybridprune.report", finished).stdout


@pytest.mark.full
def test_channels_of_a_gated_network_go_where_no_rotation_pays(
    finished: Path, tmp_path: Path, machine: Machine
) -> None:
    machine.start, machine.pointwise, machine.depthwise = 20_000.0, 20.0, 200.0
    where = ("--checkpoint_file", folder_of(finished, "sp"), "--result_dir", tmp_path / "timed")
    done = stage("prune", *where, *TIME, "--target_latency", "0.9", "--epochs_start", "1", "--max_iter", "2")
    assert done.returncode == 0, done.stderr
    run = folder_of(tmp_path / "timed", "prune")
    result = json.loads((run / "result.json").read_text())
    assert result["latency"]["met"]
    net = hybridprune.load(run).network
    narrow = [name for name, m in net.named_modules() if name.endswith("bn1") and m.num_features % 8]
    assert narrow and all("backbone.blocks" in name for name in narrow), net
    routed = stage("rl", "--checkpoint_file", run, "--result_dir", tmp_path / "timed", "--epochs", "1")
    assert routed.returncode == 0, routed.stderr


@pytest.mark.exhaustive
@pytest.mark.full
def test_iterations_and_a_cut_network(finished: Path, tmp_path: Path, machine: Machine) -> None:
    """Each iteration is nearer to the budget; shares are of the network before all cuts."""
    where = ("--checkpoint_file", folder_of(finished, "prune"), "--result_dir", tmp_path / "timed")
    done = stage(
        "prune",
        *where,
        *TIME,
        "--epochs_start",
        "1",
        "--max_iter",
        "2",
        "--back_ratio",
        "0.2",
        "--latency_threads",
        "1",
    )
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stderr.splitlines() if "a batch of 4 takes" in line]
    assert len(told) == 4
    run = folder_of(tmp_path / "timed", "prune")
    record = json.loads((run / "result.json").read_text())["latency"]
    assert record["met"] and record["threads"] == 1


@pytest.mark.full
def test_a_target_below_the_floor_leaves_nothing_behind(finished: Path, tmp_path: Path, machine: Machine) -> None:
    before = contents(finished)
    where = ("--checkpoint_file", folder_of(finished, "sp"), "--result_dir", tmp_path / "timed")
    refused = stage("prune", *where, *TIME, "--target_latency", "0.001")
    assert_refused(refused, "--target_latency 0.001: below what", "of the time (")
    assert contents(finished) == before and not folder_of(tmp_path / "timed", "prune").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--latency_batch", "0"), "--latency_batch 0: must be at least 1"),
        (("--latency_engine", "tflite"), '--latency_engine "tflite": must be one of eager, onnxruntime, openvino'),
        (("--target_latency", "0"), "--target_latency 0.0: must be above 0"),
        (("--method", "slimming"), "--target_latency: --method slimming trains towards its cut"),
    ],
)
def test_one_line_for_what_cannot_be(flags: tuple[str, ...], words: str, finished: Path, tmp_path: Path) -> None:
    where = ("--checkpoint_file", folder_of(finished, "sp"), "--result_dir", tmp_path / "timed")
    assert_refused(stage("prune", *where, *TIME, *flags), words)
