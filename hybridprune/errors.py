"""The two ways a command can end badly, and the one place that turns them into an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable


class UserError(Exception):
    """A mistake the user can mend: one line that names the flag or file, its value and the remedy (exit code 2)."""


class RunFailed(Exception):
    """A run that failed by itself, for example on a loss that is not finite (exit code 1)."""


class Interrupted(Exception):
    """The user pressed Ctrl-C; the state was saved and the message says how to go on (exit code 130)."""


def ending(error: BaseException) -> tuple[int, str] | None:
    """Exit code and message of an error that a command may end with; None for one that is a mistake of ours."""
    if isinstance(error, UserError):
        return 2, f"error: {error}"
    if isinstance(error, RunFailed | OSError):  # for example a full disk; what was saved before is whole
        return 1, f"failed: {error}"
    if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker"):  # died, says torch
        reason = str(error).splitlines()[0]
        return 1, f"failed: {reason}; give fewer --num_workers, or the machine more (shared) memory"
    if isinstance(error, Interrupted | KeyboardInterrupt):
        return 130, f"\ninterrupted: {str(error) or 'give the same command with --resume to go on'}"
    return None


def run_command(command: Callable[[], None]) -> int:
    """Run ``command`` and return the process exit code: 0, 1 (failed), 2 (user's mistake) or 130 (interrupted)."""
    try:
        command()
    except BrokenPipeError:  # the reader of our output has gone, for example `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (Exception, KeyboardInterrupt) as error:
        known = ending(error)
        if known is None:
            raise
        code, message = known
        print(message, file=sys.stderr)
        return code
    return 0
