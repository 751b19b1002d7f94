"""Operating points of a finished run: the sweep command, and evaluate with a budget."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from hybridprune.commands import evaluate
from hybridprune.commands.threshold_sweep import thresholds
from hybridprune.config import DataOptions
from hybridprune.data import EvalBatches
from hybridprune.engine.run_data import load_images
from hybridprune.engine.threshold import OperatingPoint
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.stages.images import read_split
from hybridprune.store.run_folder import RunFolder
from tests.cli.tiny_runs import folder_of, run_here, stage


def test_a_sweep_leaves_table_plot_and_numbers(results: Path) -> None:
    run = folder_of(results, "rl")
    done = run_here("hybridprune.sweep", run, "--points", "3", "--split", "test")
    assert done.returncode == 0, done.stderr
    points = json.loads((run / "sweep.json").read_text())
    assert f"written: {run / 'sweep.md'}, {run / 'sweep.json'}, {run / 'sweep.png'}\n" in done.stderr
    assert done.stdout == (run / "sweep.md").read_text() and (run / "sweep.png").read_bytes()[1:4] == b"PNG"
    assert done.stdout.count("\n| ") == 1 + len(points) and len(points) >= 3
    result = json.loads((run / "result.json").read_text())
    (own,) = (point for point in points if point["threshold"] == 0)
    for prefix, split in (("", "validation"), ("test_", "test")):
        routed = result[split]["routed"]
        assert own[f"{prefix}accuracy"] == pytest.approx(routed["accuracy"])
        assert own[f"{prefix}flops"] == pytest.approx(2 * routed["expected_macs"])
        assert points[0][f"{prefix}accuracy"] == pytest.approx(result[split]["always_on"]["accuracy"])
    assert points[0]["mean_rate"] == 1 and points[-1]["mean_rate"] == 0
    assert [point["flops"] for point in points] == sorted((point["flops"] for point in points), reverse=True)
    # JSON has no infinity: the extremes have no threshold, but probabilities.
    extremes = [(point["threshold"], point["probability"]) for point in (points[0], points[-1])]
    assert extremes == [(None, 0), (None, 1)]
    between = [point["threshold"] for point in points[1:-1]]
    assert between == sorted(between) and own["probability"] == 0.5
    assert done.stdout.count("| all run | 0 |") == done.stdout.count("| none runs | 1 |") == 1


def test_a_sweep_looks_at_validation_images_unless_told_otherwise(results: Path) -> None:
    run = folder_of(results, "rl")
    assert run_here("hybridprune.sweep", run, "--points", "1").returncode == 0
    plain = json.loads((run / "sweep.json").read_text())
    assert run_here("hybridprune.sweep", run, "--points", "1", "--split", "test").returncode == 0
    tested = json.loads((run / "sweep.json").read_text())
    for before, after in zip(plain, tested, strict=True):
        added = {key for key in after if key.startswith("test_")}
        assert "test_accuracy" in added and {key: after[key] for key in after if key not in added} == before


@pytest.mark.parametrize("place", [-1000.0, -60.0, 60.0, 1000.0])
def test_logits_far_from_0_have_a_curve_too(place: float) -> None:
    logits = place + torch.linspace(-1, 1, 30).view(6, 5)
    found = thresholds(logits, 3)
    assert found == sorted(found) and found[-1] == math.inf and 0 in found
    assert sum(0 < float((logits > threshold).double().mean()) < 1 for threshold in found) == 3


def test_evaluate_picks_the_threshold_of_a_budget(results: Path, tmp_path: Path) -> None:
    learnt = stage("sp", "--result_dir", tmp_path, "--gate_noise", "1", "--alpha", "0.5", "--epochs", "6")
    assert learnt.returncode == 0, learnt.stderr
    run = folder_of(tmp_path, "sp")
    swept = run_here("hybridprune.sweep", run, "--points", "9", "--output", tmp_path / "swept")
    assert swept.returncode == 0, swept.stderr
    points = json.loads((tmp_path / "swept" / "sweep.json").read_text())
    middle = min(points, key=lambda point: abs(point["mean_rate"] - 0.5))
    for budget in (middle["dense_share"], middle["flops"]):
        done = run_here("hybridprune.evaluate", run, "--target_flops", budget, "--split", "validation")
        assert done.returncode == 0, done.stderr
        found = re.search(r"expected ([\d.e-]+) GFLOPs", done.stdout)
        assert found is not None and float(found[1]) == pytest.approx(
            middle["flops"] / 1e9, rel=0.011
        )  # a threshold within 1 %, four digits
        assert "chosen on the validation images" in done.stdout


@pytest.mark.parametrize(
    ("command", "flags", "words"),
    [
        ("evaluate", ("--target_flops", "0.01"), ("--target_flops 0.01", "nearest operating point")),
        ("evaluate", ("--target_flops", "-1"), ("--target_flops -1", "above 0")),
        ("evaluate", ("--target_flops", "0.5", "--mode", "always_on"), ("--target_flops", "always_on")),
        ("sweep", ("--points", "0"), ("--points 0",)),
        ("sweep", ("--split", "train"), ("--split", "train", "--help")),
        ("sweep", ("--batch_size", "0"), ("--batch_size 0",)),
        ("sweep", ("--output", "/dev/null/x"), ("--output /dev/null/x",)),
        ("sweep", ("--what",), ("--what", "--help")),
    ],
)
def test_mistakes(command: str, flags: tuple[str, ...], words: tuple[str, ...], finished: Path) -> None:
    done = run_here(f"hybridprune.{command}", folder_of(finished, "rl"), *flags)
    assert done.returncode == 2 and all(word in done.stderr for word in words), done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_test_images_are_evaluated_without_the_validation_split(results: Path) -> None:
    run = folder_of(results, "rl")
    (run / "split.json").unlink()
    assert run_here("hybridprune.evaluate", run).returncode == 0
    done = run_here("hybridprune.evaluate", run, "--split", "validation")
    assert done.returncode == 2 and "split.json" in done.stderr


@pytest.mark.parametrize("split", ["test", "validation"])
def test_a_threshold_is_chosen_on_the_validation_images_whichever_are_measured(
    split: str, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, seen = folder_of(finished, "rl"), []
    choose = evaluate.threshold_for

    def watched(net: GatedNetwork, batches: EvalBatches, *rest: Any) -> OperatingPoint:
        seen.append(torch.cat([batch.labels for batch in batches]))
        return choose(net, batches, *rest)

    monkeypatch.setattr(evaluate, "threshold_for", watched)
    share = json.loads((run / "result.json").read_text())["validation"]["routed"]["expected_macs"]
    done = run_here("hybridprune.evaluate", run, "--target_flops", 2 * share, "--split", split)
    assert done.returncode == 0, done.stderr
    (labels,) = seen
    digits = load_images(DataOptions(dataset="digits", resize=8)).train
    assert torch.equal(labels, digits.labels[read_split(RunFolder(run)).validation])


def test_a_network_without_gates_has_no_curve(tmp_path: Path) -> None:
    built = stage("sp", "--result_dir", tmp_path, "--network", "vgg", "--depth", "11", "--resize", "32")
    assert built.returncode == 0, built.stderr
    (run,) = tmp_path.glob("default/*-sp-seed0")
    for command in (("hybridprune.sweep", run), ("hybridprune.evaluate", run, "--target_flops", "0.5")):
        done = run_here(str(command[0]), *command[1:])
        assert done.returncode == 2 and "no gates" in done.stderr
