"""Finished runs of all stages, made once a session."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.cli.tiny_runs import STAGES, stage


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result folder with one finished tiny run of every stage; not to be changed."""
    results = tmp_path_factory.mktemp("finished") / "results"
    for name in STAGES:
        done = stage(name, "--result_dir", results)
        assert done.returncode == 0, done.stderr
    return results


@pytest.fixture
def results(finished: Path, tmp_path: Path) -> Path:
    """A copy of ``finished`` that a test may spoil."""
    return Path(shutil.copytree(finished, tmp_path / "results"))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands neither see nor leave files outside the test's own folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))
