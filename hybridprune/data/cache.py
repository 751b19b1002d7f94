"""Decoded images on disk: one safetensors file a state of the image tree."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hybridprune.caller import warn_caller

OLD = 24 * 60 * 60.0
"""Seconds after which a file that is still being written is nobody's."""


def default_cache_dir() -> Path:
    """``$XDG_CACHE_HOME/hybridprune``, or ``~/.cache/hybridprune`` where that is unset."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hybridprune"


def read_cache(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor] | None:
    """The tensors of a cache file, or None if it is missing, broken or not of the expected shapes."""
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError):
        return None
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return tensors if found == dict(shapes) else None


def write_cache(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a cache file atomically; a folder that cannot be written to is only warned about."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path.parent)
        save_file(tensors, temporary)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        warn_caller(f"images are not cached in {path.parent}: {error}", RuntimeWarning)
    finally:
        if temporary.is_file():
            temporary.unlink()


def _remove_leftovers(folder: Path) -> None:
    """Remove what killed writers have left: a younger file may be one that is being written, here or elsewhere."""
    for leftover in folder.glob("*.safetensors.*.tmp"):
        with contextlib.suppress(FileNotFoundError):  # another one was faster
            if time.time() - leftover.stat().st_mtime > OLD:
                leftover.unlink()
