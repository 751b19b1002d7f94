# pyright: strict
"""Folders that `save` writes: weights, and a record of what puts the network together again."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from hybridprune.errors import UserError
from hybridprune.json_text import read_json
from hybridprune.models.edits import Edit
from hybridprune.models.origin import origin_of
from hybridprune.store.files import write_json
from hybridprune.store.weights import save_weights

WEIGHTS, SPEC = "model.safetensors", "spec.json"


def path_of(given: object, argument: str) -> Path:
    """The path that an argument names; UserError if it is none."""
    if not isinstance(given, str | Path):
        raise UserError(f"{argument}: is a {type(given).__name__}; name a folder")
    return Path(given)


def saved_folder(source: object) -> Path:
    """The path of a folder with a record; UserError where there is none, or it is a run's."""
    path = path_of(source, "source")
    if not (path / SPEC).is_file():
        wrong = "no such folder" if not path.exists() else "holds no spec.json" if path.is_dir() else "is a file"
        raise UserError(f"{path}: {wrong}; name a folder that hybridprune.save wrote")
    if "network" in record_in(path):
        raise UserError(f"{path}: is a run folder; use hybridprune.load, which knows its network")
    return path


def record_in(folder: Path) -> Mapping[str, Any]:
    """A folder's record, of whatever kind; empty if it cannot be read."""
    try:
        record = read_json(folder / SPEC)
    except (OSError, ValueError):
        return {}
    return cast(Mapping[str, Any], record) if isinstance(record, Mapping) else {}


def is_saved(path: Path) -> bool:
    """Whether ``path`` is a folder of `save`, or a file in one."""
    return path.exists() and "dense_macs" in record_in(path if path.is_dir() else path.parent)


def write_folder(folder: Path, module: nn.Module, record: Mapping[str, object]) -> None:
    """Write both files, each atomically; UserError if the folder is a file."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise UserError(f"folder {folder}: is a file; name a folder, which may be a new one") from error
    save_weights(module, folder / WEIGHTS)
    write_json(folder / SPEC, record)


def check_rebuilt(module: nn.Module, edits: Sequence[Edit], what: str, maker: str) -> None:
    """UserError if a fresh instance with these edits is not ``module``: if it was changed after it was made."""
    origin = dataclasses.replace(origin_of(module), edits=tuple(edits))
    own = {name: _outline(value) for name, value in module.state_dict().items()}
    try:
        there = {name: _outline(value) for name, value in origin.rebuilt().state_dict().items()}
    except ValueError as error:
        raise UserError(f"{what} does not belong to its specification ({error}); save what {maker} gave") from error
    for name in sorted(own.keys() | there.keys()):
        if own.get(name) != there.get(name):
            raise UserError(
                f"{name} of {what} is {own.get(name, 'missing')}, and of a fresh one, pruned by its specification, "
                f"{there.get(name, 'missing')}; save what {maker} gave, with the layers that it had then"
            )


def _outline(value: object) -> str:
    return f"{list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
