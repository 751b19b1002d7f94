"""One sweep at a time in a folder of results."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from hybridprune.errors import UserError

LOCK = ".sweep.lock"


@contextmanager
def alone(result_dir: Path) -> Iterator[None]:
    """Keep other sweeps away from ``result_dir``, which is made; UserError if one is at work there.

    The operating system holds the lock and lets go of it when this process ends, however it ends; the file stays and
    means nothing.
    """
    result_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(result_dir / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise UserError(
            f"result_dir {result_dir}: another sweep is at work there; wait for it or end it, or choose another folder"
        ) from error
    try:
        yield
    finally:
        lock.release()
