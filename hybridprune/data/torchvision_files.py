"""Published image sets that torchvision reads: what is told where their files are missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path

from hybridprune.errors import UserError


def folder_of(name: str, data_dir: str | None) -> Path:
    """The folder in which the files of the set ``name`` lie or are to lie; raises UserError if none is given."""
    if data_dir is None:
        raise UserError(f"--data_dir is missing: give the folder that holds (or is to hold) {name}")
    return Path(data_dir).expanduser()


@contextmanager
def reading(name: str, place: Path, download: bool) -> Iterator[None]:
    """Inside, torchvision reads the set ``name`` from ``place``, a file or a folder of its own in ``--data_dir``.

    Raises UserError where that is missing, corrupt or cannot be fetched. torchvision compares all files with their
    published md5 before it opens them.
    """
    try:
        yield
    except (RuntimeError, OSError, HTTPException) as error:
        if download:
            reason = " ".join(str(error).split())
            message = f"--download: {name} could not be fetched into {place.parent} ({reason}); check the network"
        elif place.exists():
            message = f"{place} is incomplete or corrupt: delete it and give --download"
        else:
            message = f"--data_dir {place.parent} holds no {place.name}: give --download to fetch {name}"
        raise UserError(message) from error
