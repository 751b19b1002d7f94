"""The lock of a folder, from several processes."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from hybridprune.errors import UserError
from hybridprune.store.lock import exclusive
from tests.processes import Forked

BUSY = "--result_dir: another one is at work"


def hold(folder: Path, held: Path, enough: Path) -> None:
    """Hold the folder, which ``held`` says, until there is a file ``enough``."""
    with exclusive(folder, BUSY):
        held.touch()
        while not enough.exists():
            time.sleep(0.005)


@pytest.mark.full
@pytest.mark.parametrize("end", [None, signal.SIGTERM, signal.SIGKILL])
def test_a_folder_is_refused_until_its_sweep_has_ended_however_that_was(tmp_path: Path, end: int | None) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    held, enough = tmp_path / "held", tmp_path / "enough"
    process = Forked(hold, folder, held, enough, cwd=tmp_path, env={})
    while not held.exists():
        assert process.poll() is None
        time.sleep(0.005)
    with pytest.raises(UserError, match=BUSY), exclusive(folder, BUSY):
        pytest.fail("two in one folder")
    with exclusive(folder, BUSY, ".another.lock"), exclusive(tmp_path, BUSY):
        pass
    if end is None:
        enough.touch()
    else:
        os.kill(process.pid, end)
    assert process.communicate() == ("", "") and process.returncode == -(end or 0)
    with exclusive(folder, BUSY):
        pass
    with exclusive(folder, BUSY):  # and once more, over the file that is left
        pass


def test_an_error_ends_it_too(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mine"), exclusive(tmp_path, BUSY):
        raise ValueError("mine")
    with exclusive(tmp_path, BUSY):
        pass


def test_the_folder_may_go_away_meanwhile(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with exclusive(tmp_path / "run", BUSY):
        shutil.rmtree(tmp_path / "run")


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused = pytest.raises(UserError, match=r"file: cannot be written to \(.*\); choose a writable folder")
    with refused, exclusive(tmp_path / "file", BUSY):
        pytest.fail("held nothing")
