"""Pruning for a subtask: the classes that --classes names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hybridprune.data.digits import load_digits
from tests.cli.tiny_runs import assert_refused, folder_of, run_here, stage


@pytest.mark.full
def test_a_network_is_pruned_for_some_classes(tmp_path: Path) -> None:
    assert stage("sp", "--result_dir", tmp_path).returncode == 0
    words = ("--method", "trace-ratio", "--classes", "3,7")
    done = stage("prune", "--result_dir", tmp_path, *words)
    assert done.returncode == 0, done.stderr
    data, run = load_digits(resize=8), folder_of(tmp_path, "prune")
    validation = json.loads((run / "split.json").read_text())["validation"]
    assert data.train.labels[validation].unique().tolist() == [3, 7]
    count = int(((data.test.labels == 3) | (data.test.labels == 7)).sum())
    found = run_here("hybridprune.evaluate", run, "--device", "cpu", "--split", "test")
    accuracy = json.loads((run / "result.json").read_text())["test"]["routed"]["accuracy"]
    assert f"{count} test images" in found.stdout and f"accuracy {accuracy:.4f}" in found.stdout, found.stderr
    assert_refused(stage("rl", "--result_dir", tmp_path), "--classes 3,7")
