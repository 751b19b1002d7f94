"""Killed at any file operation, a run goes on and ends with the bits of an undisturbed run.

A killed process leaves the files as they are: what a run has written before each of its file operations is recorded
once, and a run is resumed from each such state.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hybridprune.store.files import PREFIX, SUFFIX
from tests.cli.tiny_runs import NETWORK, ROOT, SCRIPTS, folder_of, run_here

pytestmark = pytest.mark.full
TINY = (*NETWORK, "--dataset", "digits", "--resize", "8", "--max_train_samples", "40", "--bs", "20", "--device", "cpu")
CUT = (
    *("--config_path", str(ROOT / "config.json"), "--target_flops", "0.6", "--curvature_images", "20"),
    *("--moment_images", "20", "--refit_images", "20", "--epochs_start", "1", "--epochs_end", "1"),
)
CASES = {
    "sp": ("sp", ("--epochs", "1", "--lr", "0.05", "--gate_noise", "1")),
    "two cuts": ("prune", (*CUT, "--back_ratio", "0.3", "--kd_weight", "0.3")),
    "trained towards a cut": ("prune", (*CUT, "--method", "nuspm", "--sparse_epochs", "1")),
    "rl": ("rl", ("--epochs", "1", "--target_flops", "0.55", "--price_step", "0.1", "--kd_weight", "0.3")),
}
PARENTS = {"prune": "sp", "rl": "prune"}
State = dict[str, bytes]
"""The files of a run folder, by name, but for tensorboard's, which nothing reads again."""


def files(run: Path) -> State:
    """Of a file that is being written one name and content stand for all."""
    found = [path for path in run.rglob("*") if path.is_file() and path.parent.name != "tb"]
    finished = {path.name: path.read_bytes() for path in sorted(found) if not path.name.startswith(PREFIX)}
    return finished if len(finished) == len(found) else {**finished, f"{PREFIX}0{SUFFIX}": b"half"}


class Recorder:
    """The distinct states of a run folder before each operation that changes it."""

    def __init__(self) -> None:
        self.states: list[State] = []
        self._run: Path | None = None
        sys.addaudithook(self._audit)  # for good: it does nothing while no folder is watched

    @contextmanager
    def watching(self, run: Path) -> Iterator[None]:
        self.states.clear()
        self._run = run
        try:
            yield
        finally:
            self._run = None
        self._note(run)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        run = self._run
        if run is None or event not in ("open", "os.rename", "os.remove", "os.mkdir", "os.chmod", "os.link"):
            return
        if not str(arguments[0]).startswith(str(run)) or (event == "open" and not arguments[2] & _WRITES):
            return
        self._run = None  # what is read now is no operation of the run's
        self._note(run)
        self._run = run

    def _note(self, run: Path) -> None:
        state = files(run)
        before = self.states[-1] if self.states else {}
        lines, more = (each.get("metrics.jsonl", b"") for each in (before, state))
        if len(more) > len(lines):  # killed while it was being appended
            self.states.append({**state, "metrics.jsonl": more[: (len(lines) + len(more)) // 2]})
        if state not in self.states:
            self.states.append(state)


_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@pytest.fixture(scope="module")
def recorder() -> Recorder:
    return Recorder()


def outcome(run: Path) -> dict[str, Any]:
    """What a run ends with, but for times and what an unfinished write leaves."""
    result, lines = json.loads((run / "result.json").read_text()), (run / "metrics.jsonl").read_text().splitlines()
    del result["seconds"]
    metrics = [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]
    left = {name: content for name, content in files(run).items() if name not in ("train_state.pt", ".lock")}
    return {**left, "result.json": result, "metrics.jsonl": metrics}


@pytest.mark.parametrize("case", [pytest.param(x, marks=() if x == "sp" else pytest.mark.exhaustive) for x in CASES])
def test_killed_at_every_file_operation(
    case: str, results: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uuid, "uuid4", lambda: uuid.UUID(int=0))  # the name of a run is all that is drawn anew
    name, own = CASES[case]
    parent = ("--checkpoint_file", str(folder_of(results, PARENTS[name]))) if name in PARENTS else ()
    command = (*TINY, *own, *parent, "--result_dir", results, "--exp_name", "killed")
    run = folder_of(results, name, "killed")
    with recorder.watching(run):
        done = run_here(SCRIPTS[name], *command)
    assert done.returncode == 0, done.stderr
    whole, states = outcome(run), list(recorder.states)
    assert len(states) > 20 and states[0] == {}
    step = 1 if case in ("sp", "rl") else 3  # the others take long, and do the same after each of their epochs
    for state in states[::step]:
        shutil.rmtree(run)
        run.mkdir()
        for file, content in state.items():
            (run / file).write_bytes(content)
        again = run_here(SCRIPTS[name], *command, "--resume")
        assert again.returncode == 0, again.stderr
        assert outcome(run) == whole, sorted(state)
