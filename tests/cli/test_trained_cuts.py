"""Stage 2 with masksparsity and greg-2: the masks, both trainings towards sparsity, the cut's own gap, and resuming."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hybridprune.errors import RunFailed
from hybridprune.stages import prune
from tests import ROOT
from tests.cli.tiny_runs import DIGITS, SCRIPTS, Result, assert_refused, folder_of, run_here, weights
from tests.engine.test_curves import points

SHORT = ("--sparse_epochs", "2", "--epochs_start", "1", "--epochs_end", "1", "--lr", "0.02", "--ema_decay", "0.8")
JOINED = ("--use_out_dependencies", "--prune_ratio_limit", "0.75")


def start(finished: Path, results: Path, *flags: str) -> Result:
    where = (
        "--config_path",
        ROOT / "config.json",
        "--checkpoint_file",
        folder_of(finished, "sp"),
        "--result_dir",
        results,
    )
    return run_here(SCRIPTS["prune"], *DIGITS, *SHORT, *JOINED, *where, *flags)


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def first_and_last(run: Path, phase: int) -> tuple[dict[str, Any], dict[str, Any]]:
    of_phase = [record for record in records(run) if record["phase"] == phase]
    return of_phase[0], of_phase[-1]


@pytest.mark.full
def test_masksparsity_trains_twice_from_the_parent_and_cuts_what_was_voted(finished: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text("{}")  # without a budget: the threshold decides, here one that some scales are below
    flags = ("--method", "masksparsity", "--mask_threshold", "0.97", "--sparsity_weight", "0.02", "--sparse_lr", "0.08")
    done = start(finished, tmp_path, *flags, "--config_path", str(config))
    assert done.returncode == 0, done.stderr
    run = folder_of(tmp_path, "prune")
    result = json.loads((run / "result.json").read_text())
    assert 0 < result["macs"]["backbone"] < result["dense"]["macs"] and result["method"] == "masksparsity"
    parent, _ = first_and_last(run, 0)
    again, trained = first_and_last(run, 1)
    validations = [{k: v for k, v in r.items() if k.startswith("validation")} for r in (parent, again)]
    assert validations[0] == validations[1] and len(validations[0]) > 1
    assert result["gap"]["before"] == {name: trained[f"validation_{name}"] for name in ("accuracy", "loss")}
    for phase, lr in ((0, 0.08), (1, 0.08), (2, 0.02)):
        assert max(r["lr"] for r in records(run) if r["phase"] == phase and "lr" in r) <= lr
        assert any(r.get("lr", 0) > 0.5 * lr for r in records(run) if r["phase"] == phase)
    curves = [(name, step) for name, step, _ in points(run / "tb") if name.startswith(("cut/", "ratio/"))]
    assert {name for name, step in curves if step == 0} == {name for name, step in curves if step == 1}
    (left,) = (value for name, step, value in points(run / "tb") if (name, step) == ("cut/flops", 1))
    assert left == pytest.approx(result["macs"]["backbone"] / result["dense"]["macs"], rel=1e-6)
    assert {step for _, step in curves} == {0, 1} and {("cut/inference_ms", 1), ("cut/params", 0)} <= {*curves}
    # What is cut is the last weights of these trainings, so only those of the fine-tuning are averaged.
    assert {r["phase"] for r in records(run) if "validation_averaged_accuracy" in r} == {2}
    assert result["gap"]["after"]["loss"] != result["gap"]["before"]["loss"]
    assert json.loads((run / "spec.json").read_text())["network"]["edits"]
    shown = next(line for line in done.stderr.splitlines() if line.startswith("the cut alone: "))
    assert f"{result['gap']['after']['accuracy']:.4f}" in shown


@pytest.mark.full
@pytest.mark.parametrize("method", ["masksparsity", pytest.param("greg-2", marks=pytest.mark.exhaustive)])
def test_a_run_that_stops_between_and_within_its_trainings_ends_as_if_it_had_not(
    method: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("--method", method, "--target_flops", "0.5", "--greg_interval", "2")
    whole = start(finished, tmp_path / "whole", *flags)
    assert whole.returncode == 0, whole.stderr
    expected = folder_of(tmp_path / "whole", "prune")
    result = json.loads((expected / "result.json").read_text())
    assert 0.4 * result["dense"]["macs"] < result["macs"]["backbone"] <= 0.5 * result["dense"]["macs"]
    stopped = folder_of(tmp_path / "stopped", "prune")

    train, place = prune._Trainer.train, prune.Fit._place
    with monkeypatch.context() as patch:

        def stop_between(trainer: Any, net: Any, number: int, *more: Any) -> None:
            train(trainer, net, number, *more)
            if number == 0:
                raise RunFailed("between the trainings")

        patch.setattr(prune._Trainer, "train", stop_between)
        assert start(finished, tmp_path / "stopped", *flags).returncode == 1
    assert {record["phase"] for record in records(stopped)} == {0}
    with monkeypatch.context() as patch:

        def stop_within(fit: Any, progress: Any, batch: Any) -> None:
            if progress.phase == 1 and progress.epoch == 1:
                raise RunFailed("in the second training")
            place(fit, progress, batch)

        patch.setattr(prune.Fit, "_place", stop_within)
        assert start(finished, tmp_path / "stopped", *flags, "--resume").returncode == 1
    assert {record["phase"] for record in records(stopped)} == {0, 1}
    assert start(finished, tmp_path / "stopped", *flags, "--resume").returncode == 0
    assert weights(stopped) == weights(expected)
    ended = json.loads((stopped / "result.json").read_text())
    assert ended["gap"] == result["gap"] and ended["test"] == result["test"]


def test_a_budget_that_no_mask_meets_is_refused_before_anything_is_trained(finished: Path, tmp_path: Path) -> None:
    flags = ("--method", "masksparsity", "--target_flops", "0.001")
    for more in ((), ("--dry-run",)):
        assert_refused(start(finished, tmp_path, *flags, *more), "--target_flops 0.001", "the floor is")
    assert not folder_of(tmp_path, "prune").exists()
