"""Image trees: ``train/<class>/<image>`` and ``test/<class>/<image>``, decoded once and cached."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from hybridprune.data.cache import default_cache_dir, read_cache, write_cache
from hybridprune.data.dataset import Dataset, LabelledImages, pixel_statistics
from hybridprune.data.decode import IMG_TYPES, decode_files
from hybridprune.errors import UserError

# Accepted folder names, the first that exists is taken.
_SPLITS = {"train": ("train", "training_set", "training"), "test": ("test", "test_set", "val")}
_CACHE_FORMAT = "hybridprune-tree-1"  # to be counted up when the decoding changes


class _File(NamedTuple):
    path: str
    name: str  # "train/<class>/<file>", whatever the folder of the split is called
    size: int
    mtime_ns: int
    label: int


def load_tree(data_dir: str | None, *, img_type: str, resize: int, num_workers: int, cache_dir: str | None) -> Dataset:
    """Load an image tree, from its cache file if nothing in the tree has changed since.

    ``img_type`` is a file extension of ``IMG_TYPES`` or "any". Classes are the folder names in alphabetical
    order. The digest covers relative names, sizes and ``resize``, not the pixels. Raises ``UserError`` on
    anything in the tree that is not an image of the type in a class folder; hidden files and Thumbs.db are
    ignored.
    """
    if data_dir is None:
        raise UserError("--data_dir is missing: give the folder that holds train/<class>/ and test/<class>/")
    root = Path(data_dir).expanduser().resolve()
    suffixes = _suffixes(img_type)
    try:
        classes, files = _list_tree(root, suffixes, img_type)
    except OSError as error:
        raise UserError(f"--data_dir {data_dir}: cannot be read ({error})") from error

    folder = Path(cache_dir).expanduser() if cache_dir is not None else default_cache_dir()
    every_file = [file for split in files.values() for file in split]
    stamps = [f"{file.size} {file.mtime_ns}" for file in every_file]
    path = folder / f"{_hash(every_file, stamps, f'{_CACHE_FORMAT} {resize} {root}')}.safetensors"
    images = read_cache(path, {split: (len(files[split]), 3, resize, resize) for split in files})
    if images is None:
        images = {
            split: decode_files(
                [file.path for file in files[split]],
                resize=resize,
                num_workers=num_workers,
                title=f"decoding {split}",
            )
            for split in files
        }
        write_cache(path, images)
    data = {
        split: LabelledImages(images[split], torch.tensor([file.label for file in files[split]])) for split in files
    }
    mean, std = pixel_statistics(data["train"].images)
    return Dataset(
        name=root.name,
        train=data["train"],
        test=data["test"],
        classes=classes,
        mean=mean,
        std=std,
        flippable=True,
        digest=_hash(every_file, [str(file.size) for file in every_file], str(resize)),
    )


def _hash(files: list[_File], stamps: list[str], header: str) -> str:
    digest = hashlib.sha256(os.fsencode(header))
    for file, stamp in zip(files, stamps, strict=True):
        digest.update(os.fsencode(f"\0{file.name}\0{stamp}"))
    return digest.hexdigest()


def _suffixes(img_type: str) -> tuple[str, ...]:
    name = img_type.lower().lstrip(".")
    if name == "any":
        return tuple(suffix for suffixes in IMG_TYPES.values() for suffix in suffixes)
    for suffixes in IMG_TYPES.values():
        if f".{name}" in suffixes:
            return suffixes
    raise UserError(f"--img_type {img_type} is unknown: choose one of {', '.join(IMG_TYPES)} or any")


def _list_tree(root: Path, suffixes: tuple[str, ...], img_type: str) -> tuple[tuple[str, ...], dict[str, list[_File]]]:
    if not root.is_dir():
        raise UserError(f"--data_dir {root} is not a folder")
    folders = {split: _split_folder(root, split) for split in _SPLITS}
    names = {split: _class_names(folder) for split, folder in folders.items()}
    for split, other in (("train", "test"), ("test", "train")):
        if extra := sorted(set(names[split]) - set(names[other])):
            listed = ", ".join(extra[:5]) + (", ..." if len(extra) > 5 else "")
            raise UserError(
                f"--data_dir {root}: {folders[other].name} lacks {len(extra)} of the class folders "
                f"of {folders[split].name}: {listed}"
            )
    classes = names["train"]
    if len(classes) < 2:
        raise UserError(f"--data_dir {root}: found {len(classes)} class folder(s), at least two are needed")
    files = {
        split: [
            file
            for label, name in enumerate(classes)
            for file in _class_files(folder / name, f"{split}/{name}", label, suffixes, img_type)
        ]
        for split, folder in folders.items()
    }
    return classes, files


def _split_folder(root: Path, split: str) -> Path:
    for name in _SPLITS[split]:
        if (root / name).is_dir():
            return root / name
    raise UserError(f"--data_dir {root}: no {split} folder (any of {', '.join(_SPLITS[split])})")


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


def _class_files(folder: Path, name: str, label: int, suffixes: tuple[str, ...], img_type: str) -> list[_File]:
    files = []
    for entry in _visible(folder):
        if not (entry.name.lower().endswith(suffixes) and entry.is_file()):
            raise UserError(
                f"{entry.path}: not an image of --img_type {img_type}; remove it or give another --img_type"
            )
        status = entry.stat()
        files.append(_File(entry.path, f"{name}/{entry.name}", status.st_size, status.st_mtime_ns, label))
    if not files:
        raise UserError(f"{folder}: the class folder holds no image")
    return sorted(files)
