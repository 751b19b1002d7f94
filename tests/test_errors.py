"""Exit codes and messages of commands that end badly."""

from __future__ import annotations

import errno
import io
import os
import signal

import pytest
import torch

from hybridprune.errors import Interrupted, RunFailed, Stopped, UserError, run_command

NO_SPACE = "failed: [Errno 28] No space left on device"
ROOM = "make room and give the same command again"
SMALLER = "give a smaller --bs, or the machine more memory"


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("--depth 9: no"), 2, "error: --depth 9: no\n"),
        (RunFailed("the loss is not finite"), 1, "failed: the loss is not finite\n"),
        (
            OSError(28, "No space left on device", "a.json"),
            1,
            f"{NO_SPACE}: 'a.json'; make room and give the same command again\n",
        ),
        (Interrupted("saved; go on with --resume"), 130, "\ninterrupted: saved; go on with --resume\n"),
        (Interrupted("saved; go on with --resume", signal.SIGTERM), 143, "\ninterrupted: saved; go on with --resume\n"),
        (KeyboardInterrupt(), 130, "\ninterrupted\n"),
        (Stopped(), 143, "\ninterrupted\n"),
        (OSError(5, "Input/output error", "a.json"), 1, "failed: [Errno 5] Input/output error: 'a.json'\n"),
        (MemoryError("6 GiB\nof them"), 1, f"failed: out of memory (6 GiB); {SMALLER}\n"),
        (torch.OutOfMemoryError("CUDA out of memory."), 1, f"failed: out of memory (CUDA out of memory.); {SMALLER}\n"),
    ],
)
def test_exit_code_and_one_line_on_stderr(
    error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> None:
        raise error

    assert run_command(command) == code
    assert capsys.readouterr() == ("", message)


def test_success_is_silent_and_zero(capsys: pytest.CaptureFixture[str]) -> None:
    ran = []
    assert run_command(lambda: ran.append(1)) == 0
    assert ran == [1] and capsys.readouterr() == ("", "")


def test_a_bug_keeps_its_traceback() -> None:
    def command() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_command(command)


def test_memory_that_the_cpu_does_not_have(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        torch.empty(2**55)

    assert run_command(command) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith("failed: out of memory (") and err.endswith(f"); {SMALLER}\n")


def test_sigterm_ends_a_command_wherever_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    cleaned = []
    before = signal.getsignal(signal.SIGTERM)

    def command() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            cleaned.append(True)

    assert run_command(command) == 143
    assert cleaned == [True] and capsys.readouterr() == ("", "\ninterrupted\n")
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_message_that_cannot_be_written_changes_no_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def command() -> None:
        raise UserError("wrong")

    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("sys.stderr", Full())
    assert run_command(command) == 2
