"""One process at a time in a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from hybridprune.errors import UserError

LOCK = ".lock"
PATIENCE = 1.0
"""Seconds that a process waits for another one that is just looking, or about to leave."""


@contextmanager
def exclusive(folder: Path, busy: str, name: str = LOCK) -> Iterator[None]:
    """Keep other processes that ask for the same lock out of an existing ``folder``.

    The operating system holds the lock and lets go of it when this process ends, however it ends; the file ``name``
    stays and means nothing. Raises UserError with the text ``busy`` if another process is at work there, and if the
    folder cannot be written to.
    """
    lock = FileLock(folder / name)
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout as error:
        raise UserError(busy) from error
    except OSError as error:
        raise UserError(f"{folder}: cannot be written to ({error.strerror}); choose a writable folder") from error
    try:
        yield
    finally:
        lock.release()
