"""The lock of a folder of results, from several processes."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hybridprune.errors import UserError
from hybridprune.sweep_runs.alone import alone
from tests.cases import ROOT

HOLD = """
import sys
from pathlib import Path
from hybridprune.sweep_runs.alone import alone
with alone(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.readline()
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    """A process that holds the folder until it reads a line."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "locked\n"
    return process


@pytest.mark.parametrize("end", [None, signal.SIGTERM, signal.SIGKILL])
def test_a_folder_is_refused_until_its_sweep_has_ended_however_that_was(tmp_path: Path, end: int | None) -> None:
    folder = tmp_path / "new" / "results"
    with holder(folder) as process:
        with pytest.raises(UserError, match=r"result_dir .*results: another sweep") as raised, alone(folder):
            pytest.fail("two sweeps in one folder")
        assert "\n" not in str(raised.value)
        with alone(tmp_path / "other"):
            pass
        if end is None:
            assert process.communicate("\n")[1] == "" and process.returncode == 0
        else:
            process.send_signal(end)
            assert process.wait(30) == -end
        with alone(folder):
            pass
    with alone(folder):  # and once more, over the file that is left
        pass


def test_an_error_ends_it_too(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mine"), alone(tmp_path):
        raise ValueError("mine")
    with alone(tmp_path):
        pass
