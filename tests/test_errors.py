"""Exit codes and messages of commands that end badly."""

from __future__ import annotations

import pytest

from hybridprune.errors import Interrupted, RunFailed, UserError, run_command


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("--depth 9: no"), 2, "error: --depth 9: no\n"),
        (RunFailed("the loss is not finite"), 1, "failed: the loss is not finite\n"),
        (OSError(28, "No space left on device", "a.json"), 1, "failed: [Errno 28] No space left on device: 'a.json'\n"),
        (Interrupted("saved; go on with --resume"), 130, "\ninterrupted: saved; go on with --resume\n"),
        (KeyboardInterrupt(), 130, "\ninterrupted: give the same command with --resume to go on\n"),
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
