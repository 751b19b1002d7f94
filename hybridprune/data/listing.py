"""The listing of an image tree, ``<split>/<class>/<image>``: names only, no file is opened or asked for its size."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from hybridprune.data.decode import IMG_TYPES
from hybridprune.errors import UserError


class ClassFolder(NamedTuple):
    """The images of one class in one split."""

    path: str
    name: str
    """``train/<class>`` or ``test/<class>``, as ``splits`` calls them, whatever the folder of the split is called."""
    label: int
    files: list[str]
    """Names in alphabetical order, at least one."""


class Listing(NamedTuple):
    """An image tree."""

    classes: tuple[str, ...]
    """In alphabetical order: a label is a place in it."""
    folders: Mapping[str, list[ClassFolder]]
    """Those of "train", of "test" and of what other splits there are, in the order of the classes."""


def list_tree(root: Path, splits: Mapping[str, Sequence[str]], img_type: str) -> Listing:
    """List the tree under ``root``; ``splits`` names the folders that "train", "test", ... may be, the best first.

    ``img_type`` is a file extension of ``IMG_TYPES`` or "any". Raises ``UserError`` on anything in the tree that is
    not an image of the type in a class folder, on a class that a split lacks, and on folders that cannot be
    read; hidden files and Thumbs.db are ignored.
    """
    suffixes = _suffixes(img_type)
    try:
        return _list(root, splits, suffixes, img_type)
    except OSError as error:
        raise UserError(f"--data_dir {root}: cannot be read ({error})") from error


def _suffixes(img_type: str) -> tuple[str, ...]:
    name = img_type.lower().lstrip(".")
    if name == "any":
        return tuple(suffix for suffixes in IMG_TYPES.values() for suffix in suffixes)
    for suffixes in IMG_TYPES.values():
        if f".{name}" in suffixes:
            return suffixes
    raise UserError(f"--img_type {img_type} is unknown: choose one of {', '.join(IMG_TYPES)} or any")


def _list(root: Path, splits: Mapping[str, Sequence[str]], suffixes: tuple[str, ...], img_type: str) -> Listing:
    if not root.is_dir():
        raise UserError(
            f"--data_dir {root} is not a folder; name that of the images, or give --dataset digits, which needs none"
        )
    found = {split: _split_folder(root, split, names) for split, names in splits.items()}
    names = {split: _class_names(folder) for split, folder in found.items()}
    for split, other in itertools.permutations(splits, 2):
        if extra := sorted(set(names[split]) - set(names[other])):
            listed = ", ".join(extra[:5]) + (", ..." if len(extra) > 5 else "")
            raise UserError(
                f"--data_dir {root}: {found[other].name} lacks {len(extra)} of the class folders "
                f"of {found[split].name}: {listed}"
            )
    classes = names["train"]
    if len(classes) < 2:
        raise UserError(f"--data_dir {root}: found {len(classes)} class folder(s), at least two are needed")
    folders = {
        split: [
            ClassFolder(str(folder / name), f"{split}/{name}", label, _files(folder / name, suffixes, img_type))
            for label, name in enumerate(classes)
        ]
        for split, folder in found.items()
    }
    return Listing(classes, folders)


def _split_folder(root: Path, split: str, names: Sequence[str]) -> Path:
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise UserError(f"--data_dir {root}: no {split} folder (any of {', '.join(names)})")


def _visible(folder: Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith(".") and entry.name.lower() != "thumbs.db":
                yield entry


def _class_names(folder: Path) -> tuple[str, ...]:
    names = []
    for entry in _visible(folder):
        if not entry.is_dir():
            raise UserError(f"{entry.path}: expected only class folders here; move the file away")
        names.append(entry.name)
    return tuple(sorted(names))


def _files(folder: Path, suffixes: tuple[str, ...], img_type: str) -> list[str]:
    files = []
    for entry in _visible(folder):
        if not (entry.name.lower().endswith(suffixes) and entry.is_file()):
            raise UserError(
                f"{entry.path}: not an image of --img_type {img_type}; remove it or give another --img_type"
            )
        files.append(entry.name)
    if not files:
        raise UserError(f"{folder}: the class folder holds no image")
    return sorted(files)
