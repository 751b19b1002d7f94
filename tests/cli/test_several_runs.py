"""Several budgets of one command: each run is the one that its budget alone gives, and all are measured once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hybridprune.pruning import measure
from hybridprune.stages import prune
from tests.cli.tiny_runs import assert_refused, contents, folder_of, stage, weights

SHARES = ("0.6", "0.4")
SHORT = ("--epochs_start", "1", "--epochs_end", "1")


def experiment(value: str, name: str = "target_flops") -> str:
    return f"prune.{name}={value}"


def description(run: Path) -> dict[str, Any]:
    """What a run is and came to, but for its id, its time and where it and its parent lie."""
    spec, result = (json.loads((run / name).read_text()) for name in ("spec.json", "result.json"))
    config = {**json.loads((run / "config.json").read_text()), "result_dir": "", "checkpoint_file": ""}
    figures = {name: result[name] for name in ("params", "macs", "test", "validation", "selected_epoch", "group")}
    return {**spec, "run_id": "", "config": config, "figures": figures}


@pytest.mark.full
@pytest.mark.parametrize(
    ("method", "rounds"), [("fisher-tucker", "2"), pytest.param("kron-obs", "1", marks=pytest.mark.exhaustive)]
)
def test_each_run_is_that_of_its_budget_alone(
    method: str, rounds: str, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[object] = []
    collect = measure.collect_factors
    monkeypatch.setattr(measure, "collect_factors", lambda *a, **k: passes.append(a) or collect(*a, **k))
    common = (*SHORT, "--method", method, "--max_iter", rounds, "--refit_images", "64", "--kd_weight", "0")
    done = stage("prune", "--result_dir", results, *common, "--target_flops", *SHARES)
    assert done.returncode == 0, done.stderr
    # Later iterations are of networks that differ.
    assert len(passes) == 1 + len(SHARES) * (int(rounds) - 1)
    parent = ("--checkpoint_file", folder_of(results, "sp"), "--result_dir", tmp_path / "alone")
    for share in SHARES:
        name = experiment(share)
        alone = stage("prune", *parent, *common, "--target_flops", share, "--exp_name", name)
        assert alone.returncode == 0, alone.stderr
        runs = [folder_of(place, "prune", name) for place in (results, tmp_path / "alone")]
        assert weights(runs[0]) == weights(runs[1])
        assert description(runs[0]) == description(runs[1])
    first, second = (folder_of(results, "prune", experiment(share)) for share in SHARES)
    assert weights(first) != weights(second)


@pytest.mark.full
def test_interrupted_in_the_second_run_they_go_on(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def command(*more: str) -> Any:
        where = ("--result_dir", results, "--exp_name", "cut")
        return stage("prune", *where, *SHORT, "--prune_ratio", "0.3", "0.5", "--target_flops", "none", *more)

    load, calls = prune.load_selected, []

    def interrupted(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        load(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(prune, "load_selected", interrupted)
        done = command()
    assert done.returncode == 130 and "--resume" in done.stderr.splitlines()[-1]
    first, second = (folder_of(results, "prune", f"cut,{experiment(r, 'prune_ratio')}") for r in ("0.3", "0.5"))
    assert (first / "result.json").is_file() and not (second / "result.json").exists()
    before = contents(results)
    assert_refused(command(), str(second), "add --resume")  # and not after the first run has been done again
    assert contents(results) == before
    kept = {name: found for name, found in before.items() if (results / name).is_relative_to(first)}
    assert command("--resume").returncode == 0
    assert {name: found for name, found in contents(results).items() if name in kept} == kept
    where = ("--result_dir", results, "--exp_name", "alone")
    assert stage("prune", *where, *SHORT, "--prune_ratio", "0.5", "--target_flops", "none").returncode == 0
    assert weights(second) == weights(folder_of(results, "prune", "alone"))


@pytest.mark.full
def test_a_budget_that_cannot_be_met_is_refused_before_the_first_run(results: Path) -> None:
    before = contents(results)
    refused = stage("prune", "--result_dir", results, "--target_flops", "0.6", "0.001")
    assert_refused(refused, "--target_flops 0.001")
    assert contents(results) == before
    shown = stage("prune", "--result_dir", results, "--target_flops", *SHARES, "--dry-run")
    assert shown.returncode == 0 and shown.stdout.count("plan of the first iteration") == 2
    assert contents(results) == before
