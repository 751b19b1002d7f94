"""The lock of a folder of results, from several processes."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from hybridprune.errors import UserError
from hybridprune.sweep_runs.alone import alone
from tests.forked import Forked


def hold(folder: Path, held: Path, enough: Path) -> None:
    """Hold the folder, which ``held`` says, until there is a file ``enough``."""
    with alone(folder):
        held.touch()
        while not enough.exists():
            time.sleep(0.005)


@pytest.mark.parametrize("end", [None, signal.SIGTERM, signal.SIGKILL])
def test_a_folder_is_refused_until_its_sweep_has_ended_however_that_was(tmp_path: Path, end: int | None) -> None:
    folder = tmp_path / "new" / "results"
    held, enough = tmp_path / "held", tmp_path / "enough"
    process = Forked(hold, folder, held, enough, cwd=tmp_path, env={})
    while not held.exists():
        assert process.poll() is None
        time.sleep(0.005)
    with pytest.raises(UserError, match=r"result_dir .*results: another sweep") as raised, alone(folder):
        pytest.fail("two sweeps in one folder")
    assert "\n" not in str(raised.value)
    with alone(tmp_path / "other"):
        pass
    if end is None:
        enough.touch()
    else:
        os.kill(process.pid, end)
    assert process.communicate() == ("", "") and process.returncode == -(end or 0)
    with alone(folder):
        pass
    with alone(folder):  # and once more, over the file that is left
        pass


def test_an_error_ends_it_too(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mine"), alone(tmp_path):
        raise ValueError("mine")
    with alone(tmp_path):
        pass
