"""Hand-damaged run folders: every command ends with what it promises, or in one line with nothing overwritten."""

from __future__ import annotations

import shutil
import tempfile
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import hybridprune
from hybridprune.commands import export
from hybridprune.deployment import deploy
from hybridprune.errors import UserError
from hybridprune.store.files import sha256
from hybridprune.store.run_folder import RunFolder
from tests.cli.tiny_runs import STAGES, folder_of, run_here, stage
from tests.deployment.networks import preferring
from tests.fuzz.damaged_runs import DAMAGES, Damage, unchanged
from tests.fuzz.seeding import fuzzed, tell

COMMANDS = ("load", "load", "evaluate", "report", "next", "resume", "sweep", "export")
CASES = st.tuples(st.sampled_from(STAGES), st.lists(DAMAGES, min_size=1, max_size=2), st.sampled_from(COMMANDS))


def holds(finished: Path, name: str, damages: list[Damage], command: str) -> None:
    """Damage a copy of the run of stage ``name`` and give it to the command."""
    tell()
    with tempfile.TemporaryDirectory() as temporary:
        results = Path(shutil.copytree(finished, Path(temporary) / "results"))
        run = folder_of(results, name)
        for damage in damages:
            damage(run)
        goes_on = command == "resume" and not RunFolder(run).finished  # it may write there, to finish it
        before = {path: it for path, it in unchanged(Path(temporary)).items() if not (goes_on and run in path.parents)}
        if command == "load":
            loads(run)
        else:
            ends_well(results, name, run, command)
        after = unchanged(Path(temporary))
        assert {path: after.get(path) for path in before} == before
        new = {path.relative_to(temporary).parts[:2] for path in after.keys() - before.keys()}
        assert all(parts[0] == "results" for parts in new), new


def loads(run: Path) -> None:
    """A network that is loaded has the very weights that its run describes."""
    try:
        model = hybridprune.load(run)
    except UserError as refused:
        assert str(refused) and "\n" not in str(refused)
        return
    result = RunFolder(run).read_json("result.json")
    assert sha256(run / "model.safetensors") == result["model_sha256"]
    assert len(model.classes) == model.spec.network.classes


def ends_well(results: Path, name: str, run: Path, command: str) -> None:
    """With an exit code and, if it is not 0, in one line."""
    flags = ("--result_dir", results)
    if command == "evaluate":
        done = run_here("hybridprune.evaluate", run, "--device", "cpu")
    elif command == "sweep":
        done = run_here("hybridprune.sweep", run, "--device", "cpu")
    elif command == "export":
        with pytest.MonkeyPatch.context() as patch:  # to ask the clock takes seconds
            patch.setattr(export, "deploy", partial(deploy, time=preferring("dense")))
            done = run_here("hybridprune.export", run, "--device", "cpu", "--batch", "4")
    elif command == "report":
        done = run_here("hybridprune.report", results)
    elif command == "resume":
        done = stage(name, *flags, "--resume")
    else:
        following = {"sp": "prune", "prune": "rl", "rl": "prune"}[name]
        done = stage(following, *flags, "--exp_name", "after", "--checkpoint_file", run)
    assert done.returncode in (0, 1, 2), done.stderr
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith(("error: ", "failed: "))]
        assert len(lines) == 1 and done.stderr.splitlines()[-1] == lines[0], done.stderr
        assert len(lines[0]) < 1000, lines[0]


@fuzzed(6)
@given(CASES)
def test_a_few(finished: Path, case: tuple[str, list[Damage], str]) -> None:
    holds(finished, *case)


@pytest.mark.exhaustive
@pytest.mark.full
@fuzzed(110)
@given(CASES)
def test_many(finished: Path, case: tuple[str, list[Damage], str]) -> None:
    holds(finished, *case)
