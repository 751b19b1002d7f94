"""The ways a command can end badly, and the one place that turns them into an exit code."""

from __future__ import annotations

import errno
import importlib.util
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

FULL = (errno.ENOSPC, errno.EDQUOT)
"""The system's numbers for a full disk and for a user's share of it that is used up."""


class UserError(Exception):
    """A mistake the user can mend: one line that names the flag or file, its value and the remedy (exit code 2)."""


def need_packages(wish: str, install: str, names: Sequence[str]) -> None:
    """UserError if one of the packages ``names`` is missing: ``wish``, a flag, needs it, and pip can ``install`` it."""
    if missing := [name for name in names if importlib.util.find_spec(name) is None]:
        raise UserError(f"{wish}: needs {' and '.join(missing)}; pip install '{install}'")


class RunFailed(Exception):
    """A run that failed by itself, for example on a loss that is not finite (exit code 1)."""


class Interrupted(Exception):
    """A run that was asked to end; what can be resumed is saved, and the message says how to go on.

    The exit code is 128 + ``signum``, as shells have it: 130 for Ctrl-C, 143 for SIGTERM.
    """

    def __init__(self, message: str, signum: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.signum = signum


class Stopped(KeyboardInterrupt):
    """SIGTERM, by which schedulers ask a process to end, raised wherever the program is, as Ctrl-C is."""

    signum = signal.SIGTERM


def signal_of(error: KeyboardInterrupt) -> int:
    """The signal that has raised this."""
    return error.signum if isinstance(error, Stopped) else signal.SIGINT


def ending(error: BaseException) -> tuple[int, str] | None:
    """Exit code and message of an error that a command may end with; None for one that is a mistake of ours."""
    if isinstance(error, UserError):
        return 2, f"error: {error}"
    if isinstance(error, OSError) and error.errno in FULL:  # what was saved before is whole
        return 1, f"failed: {error}; make room and give the same command again"
    if isinstance(error, RunFailed | OSError):
        return 1, f"failed: {error}"
    if _out_of_memory(error):
        reason = (str(error).splitlines() or [""])[0]
        return 1, f"failed: out of memory ({reason}); give a smaller --bs, or the machine more memory"
    if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker"):  # died, says torch
        reason = str(error).splitlines()[0]
        return 1, f"failed: {reason}; give fewer --num_workers, or the machine more (shared) memory"
    if isinstance(error, Interrupted):
        return 128 + error.signum, f"\ninterrupted: {error}"
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal_of(error), "\ninterrupted"
    return None


def _out_of_memory(error: BaseException) -> bool:
    """Python's own, torch's on accelerators, and torch's on the CPU, which has no type of its own."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)


@contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """Inside, SIGTERM raises `Stopped`; without that it would end the process on the spot."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread receives signals
        return

    def stop(signum: int, frame: FrameType | None) -> None:
        raise Stopped

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run_command(command: Callable[[], None]) -> int:
    """Run ``command`` and return the process exit code: 0, 1 (failed), 2 (user's mistake) or 128 + a signal."""
    try:
        with stopped_by_sigterm():
            command()
    except BrokenPipeError:  # the reader of our output has gone, for example `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (Exception, KeyboardInterrupt) as error:
        known = ending(error)
        if known is None:
            raise
        code, message = known
        with suppress(OSError):  # where it goes, the disk may be full as well
            print(message, file=sys.stderr, flush=True)
        return code
    return 0
