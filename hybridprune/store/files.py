"""Files that are either whole or absent: written beside their place, then moved into it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from hybridprune.json_text import json_text

PREFIX, SUFFIX = ".hybridprune-", ".tmp"
"""Of the names of files that are being written."""


def write_atomic(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let ``write`` fill a temporary file in the same folder, flush it to disk and rename it to ``path``.

    A new file has the permissions that the user's umask gives it, one that is replaced keeps those it had, and a link
    goes on pointing to its file, which is replaced. Raises OSError that names ``path`` when the system refuses, for
    example because the disk is full: ``path`` is then as it was, and nothing else is left.
    """
    place = Path(os.path.realpath(path))
    temporary = place.with_name(f"{PREFIX}{secrets.token_hex(8)}{SUFFIX}")
    with naming(path):
        try:
            with temporary.open("xb") as file:
                if place.exists():
                    os.chmod(temporary, stat.S_IMODE(place.stat().st_mode))
                write(file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(place)
            _sync_folder(place.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content``, atomically; raises as `write_atomic` does."""
    write_atomic(path, lambda file: file.write(content))


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON (`json_text`), atomically; raises as `write_atomic` does."""
    write_bytes(path, f"{json_text(value, indent=2)}\n".encode())


def write_folder(path: Path, fill: Callable[[Path], object]) -> None:
    """Let ``fill`` fill a new folder beside ``path``, which must not exist, and rename it: it is whole or absent."""
    place = path.absolute()
    temporary = place.with_name(f"{PREFIX}{secrets.token_hex(8)}{SUFFIX}")
    with naming(path):
        temporary.mkdir()
    try:
        fill(temporary)
        with naming(path):
            temporary.rename(place)
        _sync_folder(place.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def append(path: Path, text: str) -> None:
    """Add ``text`` to a file and flush it to disk; raises OSError that names ``path``, part of it may be there then."""
    with naming(path), path.open("a") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def remove_leftovers(folder: Path) -> None:
    """Remove what writers that were killed have left in ``folder``; to be called while nobody writes there."""
    for path in folder.glob(f"{PREFIX}*{SUFFIX}"):
        path.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Inside, let the system's errors name the file that the user knows: those of a write name none."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _sync_folder(folder: Path) -> None:
    """Flush a rename to disk, where folders can be opened and flushed: it is done in any case."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
