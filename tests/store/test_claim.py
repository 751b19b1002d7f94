"""Which folder a run writes to, and that it is its own."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from hybridprune.errors import UserError
from hybridprune.store import lock
from hybridprune.store.claim import claim
from hybridprune.store.files import PREFIX, SUFFIX
from hybridprune.store.run_folder import RunFolder

CONFIG = {"lr": 0.1, "epochs": 3, "result_dir": "results"}
IDENTITY = {"lr", "epochs"}


def start(experiment: Path, resume: bool = False, **changes: Any) -> tuple[RunFolder, bool]:
    """A run that ends at once, without a result."""
    with claim(experiment, "run", {**CONFIG, **changes}, IDENTITY, resume) as claimed:
        return claimed


def end(run: RunFolder) -> None:
    run.write_json("result.json", {})


@pytest.mark.parametrize("resume", [False, True])
def test_a_new_run_gets_a_folder_with_its_configuration(resume: bool, tmp_path: Path) -> None:
    run, resumed = start(tmp_path / "results" / "default", resume)
    assert run.path == tmp_path / "results" / "default" / "run" and not resumed
    assert run.read_json("config.json") == CONFIG


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    for name in ("run", "run-2", "run-3"):
        run, resumed = start(tmp_path)
        assert run.path.name == name and not resumed
        end(run)


def test_an_unfinished_run_must_be_resumed(tmp_path: Path) -> None:
    first, _ = start(tmp_path)
    with pytest.raises(UserError, match=rf"{re.escape(str(first.path))} holds an unfinished run: add --resume"):
        start(tmp_path)
    assert start(tmp_path, resume=True) == (first, True)


def test_resume_takes_the_newest_run(tmp_path: Path) -> None:
    end(start(tmp_path)[0])
    second, _ = start(tmp_path)
    assert start(tmp_path, resume=True) == (second, True)
    end(second)
    assert start(tmp_path, resume=True) == (second, True)


def test_resuming_with_another_configuration_is_refused(tmp_path: Path) -> None:
    start(tmp_path)
    with pytest.raises(UserError, match=r"--resume: .* was started with lr = 0\.1, not 0\.2; give the same value"):
        start(tmp_path, resume=True, lr=0.2)


def test_where_things_lie_may_change_between_start_and_resumption(tmp_path: Path) -> None:
    run, _ = start(tmp_path)
    assert start(tmp_path, resume=True, result_dir="elsewhere") == (run, True)


def test_a_key_that_the_older_run_does_not_know_is_a_difference(tmp_path: Path) -> None:
    run, _ = start(tmp_path)
    run.write_json("config.json", {"lr": 0.1})
    with pytest.raises(UserError, match="was started with epochs = None, not 3"):
        start(tmp_path, resume=True)


def test_a_run_killed_before_its_first_file_can_be_resumed(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    run, resumed = start(tmp_path, resume=True)
    assert resumed and run.read_json("config.json") == CONFIG


def test_a_result_dir_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file")
    with pytest.raises(UserError, match=r"--result_dir: cannot create .*results/default/run \(Not a directory\)"):
        start(tmp_path / "results" / "default")


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--result_dir: cannot create .* \(File name too long\)"):
        start(tmp_path / ("x" * 300))


# --- other processes ---


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_under_way_is_refused(resume: bool, tmp_path: Path, patience: None) -> None:
    with (
        claim(tmp_path, "run", CONFIG, IDENTITY, False) as (run, _),
        pytest.raises(UserError, match=rf"{re.escape(str(run.path))}: another process is at work on this run; wait"),
    ):
        start(tmp_path, resume)
    assert start(tmp_path, resume=True) == (run, True)


def test_a_finished_run_is_shown_to_whoever_asks(tmp_path: Path, patience: None) -> None:
    with claim(tmp_path, "run", CONFIG, IDENTITY, False) as (run, _):
        end(run)
        assert start(tmp_path, resume=True) == (run, True)
        assert start(tmp_path)[0].path.name == "run-2"


def test_another_one_that_is_faster_gets_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: None
) -> None:
    """Between looking and making, the other process has made the folder, and it works there or has finished."""
    made, mkdir = list[Path](), Path.mkdir

    def overtaken(self: Path, *args: Any, **options: Any) -> None:
        mkdir(self, *args, **options)
        if not made:
            made.append(self)
            raise FileExistsError(17, "File exists")

    monkeypatch.setattr(Path, "mkdir", overtaken)
    with pytest.raises(UserError, match="holds an unfinished run"):
        start(tmp_path)
    shutil.rmtree(tmp_path / "run")
    made.clear()
    monkeypatch.setattr(RunFolder, "finished", property(lambda self: self.path in made))
    assert start(tmp_path)[0].path.name == "run-2"


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for whoever holds a lock."""
    monkeypatch.setattr(lock, "PATIENCE", 0.0)


def test_what_a_killed_run_was_writing_is_removed(tmp_path: Path) -> None:
    run, _ = start(tmp_path)
    (run.path / f"{PREFIX}0123{SUFFIX}").touch()
    start(tmp_path, resume=True)
    assert sorted(path.name for path in run.path.iterdir()) == [".lock", "config.json"]
