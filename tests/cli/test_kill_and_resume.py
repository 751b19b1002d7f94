"""Real processes, killed or interrupted anywhere, end with the weights of an undisturbed run, bit by bit."""

from __future__ import annotations

import functools
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hybridprune.store.run_folder import RunFolder
from tests.cli.tiny_runs import DIGITS, OWN, SCRIPTS, STAGES, assert_refused, folder_of, stage, weights
from tests.processes import Forked, start_cli

pytestmark = pytest.mark.full
PATIENCE = 600.0
LONG = {
    "sp": ("--epochs", "4", "--bs", "4", "--gate_noise", "1", "--ema_decay", "0.9"),
    "prune": (
        *("--bs", "4", "--epochs_start", "1", "--epochs_end", "1", "--max_iter", "2", "--refit_images", "64"),
        *("--back_ratio", "0.3", "--pool_momentum", "0.5", "--interpolation", "--kd_weight", "0.3", "--lr", "0.002"),
        *("--ema_decay", "0.9"),
    ),
    "rl": (
        *("--epochs", "4", "--bs", "4", "--baseline", "moving_average", "--target_flops", "0.55", "--rl_warmup", "0"),
        *("--kd_weight", "0.3", "--entropy_bonus", "0.1", "--rate_bound", "0.2"),
    ),
}
"""Many short steps, so that a moment chosen at random is rarely between two runs."""


def arguments(name: str, results: Path, exp_name: str) -> list[str]:
    parents = {"prune": "sp", "rl": "prune"}
    parent = ["--checkpoint_file", str(folder_of(results, parents[name]))] if name in parents else []
    where = ["--result_dir", str(results), "--exp_name", exp_name]
    return [*DIGITS, *OWN[name], *LONG[name], *parent, *where]


@pytest.fixture(scope="module")
def undisturbed(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a stage's run that nothing has disturbed."""
    results = Path(shutil.copytree(finished, tmp_path_factory.mktemp("undisturbed") / "results"))

    @functools.cache
    def of(name: str) -> Path:
        done = stage(name, *arguments(name, results, "whole"))
        assert done.returncode == 0, done.stderr
        return folder_of(results, name, "whole")

    return of


def start(name: str, args: list[str], cwd: Path) -> Forked:
    return start_cli(SCRIPTS[name], *args, cwd=cwd)


def wait_for(condition: Callable[[], bool], process: Forked) -> None:
    """Until the condition holds or the process has ended."""
    deadline = time.monotonic() + PATIENCE
    while not condition() and process.poll() is None:
        assert time.monotonic() < deadline, "nothing happens"
        time.sleep(0.002)


def lines(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_text().count("\n") if path.is_file() else 0


def moments(run: Path) -> list[Callable[[], bool]]:
    """Before the first state, at the first ones, in the middle, and between the last weights and the result."""
    return [
        (run / "spec.json").exists,
        (run / "train_state.pt").exists,
        lambda: lines(run) >= 2,
        lambda: lines(run) >= 4,
        (run / "last.safetensors").exists,
    ]


@pytest.mark.parametrize("name", STAGES)
def test_killed_runs_end_as_if_nothing_had_happened(
    name: str, results: Path, undisturbed: Callable[[str], Path], tmp_path: Path
) -> None:
    run = folder_of(results, name, "killed")
    draw, kills = random.Random(name), 0
    for moment in moments(run):
        process = start(name, [*arguments(name, results, "killed"), *(["--resume"] if kills else [])], tmp_path)
        wait_for(moment, process)
        time.sleep(draw.uniform(0, 0.3))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        _, errors = process.communicate(timeout=PATIENCE)
        assert "Traceback" not in errors and process.returncode in (-signal.SIGKILL, 0), errors
        if (run / "result.json").exists():
            break
    assert kills >= 2
    process = start(name, [*arguments(name, results, "killed"), "--resume"], tmp_path)
    out, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    assert f"finished: {run}" in out
    assert weights(run) == weights(undisturbed(name))
    assert lines(run) == lines(undisturbed(name))


def test_two_at_once_do_not_share_a_run(results: Path, tmp_path: Path) -> None:
    run = folder_of(results, "sp", "shared")
    first = start("sp", arguments("sp", results, "shared"), tmp_path)
    wait_for(lambda: lines(run) >= 1, first)
    os.killpg(first.pid, signal.SIGSTOP)
    for resume in (["--resume"], []):
        second = stage("sp", *arguments("sp", results, "shared"), *resume)
        assert_refused(second, str(run), "another process is at work")
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate(timeout=PATIENCE)
    assert stage("sp", *arguments("sp", results, "shared"), "--resume").returncode == 0
    assert [record["epoch"] for record in RunFolder(run).read_metrics()] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("name", "signum"),
    [
        ("sp", signal.SIGINT),
        ("prune", signal.SIGTERM),
        ("rl", signal.SIGINT),
        pytest.param("rl", signal.SIGTERM, marks=pytest.mark.exhaustive),
    ],
)
def test_ctrl_c_and_sigterm_save_and_say_how_to_go_on(
    name: str, signum: int, results: Path, undisturbed: Callable[[str], Path], tmp_path: Path
) -> None:
    run = folder_of(results, name, "interrupted")
    process = start(name, arguments(name, results, "interrupted"), tmp_path)
    wait_for(lambda: lines(run) >= 2, process)
    os.killpg(process.pid, signum)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + signum, errors
    assert "Traceback" not in errors and "--resume" in errors.splitlines()[-1]
    process = start(name, [*arguments(name, results, "interrupted"), "--resume"], tmp_path)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    assert weights(run) == weights(undisturbed(name))
