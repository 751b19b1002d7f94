"""Pruning for a subtask: the classes that --classes names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hybridprune.commands.finished_run import FinishedRun, Parser, add_batch_size
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
    parser = Parser(None)
    add_batch_size(parser)
    sample = FinishedRun.load(parser.parse_args([str(run), "--device", "cpu"])).training_sample(64)
    assert torch.cat([each.labels for each in sample]).unique().tolist() == [3, 7], "what int8 is calibrated on"
    assert_refused(stage("rl", "--result_dir", tmp_path), "--classes 3,7")
