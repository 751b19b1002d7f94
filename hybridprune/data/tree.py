"""Image trees: ``train/<class>/<image>`` and ``test/<class>/<image>``, decoded once and cached."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from hybridprune.data.cache import default_cache_dir, read_cache, write_cache
from hybridprune.data.dataset import Dataset, LabelledImages
from hybridprune.data.decode import decode_files
from hybridprune.data.listing import ClassFolder, list_tree
from hybridprune.errors import UserError

# Accepted folder names, the first that exists is taken.
_SPLITS = {"train": ("train", "training_set", "training"), "test": ("test", "test_set", "val")}
_CACHE_FORMAT = "hybridprune-tree-2"  # to be counted up when the decoding changes


class TreeFile(NamedTuple):
    """An image of a tree."""

    path: str
    name: str
    """``train/<class>/<file>``"""
    size: int
    mtime_ns: int
    label: int

    @staticmethod
    def of(path: str, name: str, label: int) -> TreeFile:
        """The file as it is now; OSError if there is none."""
        status = os.stat(path)
        return TreeFile(path, name, status.st_size, status.st_mtime_ns, label)


class Decoded(NamedTuple):
    """The images of a tree, by split, and what identifies them."""

    images: Mapping[str, LabelledImages]
    digest: str


def load_tree(
    data_dir: str | None,
    *,
    img_type: str,
    resize: int,
    num_workers: int,
    cache_dir: str | None,
    digest: str | None = None,
) -> Dataset:
    """Load an image tree, from its cache file if nothing in the tree has changed since.

    Classes are the folder names in alphabetical order. Raises ``UserError`` as `list_tree` and `decode_tree` do.
    """
    if data_dir is None:
        raise UserError(
            "--data_dir is missing: give the folder that holds train/<class>/ and test/<class>/, or --dataset digits, "
            "which needs none"
        )
    root = Path(data_dir).expanduser().resolve()
    classes, folders = list_tree(root, _SPLITS, img_type)
    images, found = decode_tree(
        root, files_of(root, folders), resize=resize, num_workers=num_workers, cache_dir=cache_dir, digest=digest
    )
    return Dataset.in_memory(root.name, images["train"], images["test"], classes, flippable=True, digest=found)


def files_of(root: Path, folders: Mapping[str, Sequence[ClassFolder]]) -> dict[str, list[TreeFile]]:
    """The files of a listing's class folders, by split; UserError if one cannot be read."""
    try:
        return {
            split: [
                TreeFile.of(os.path.join(folder.path, name), f"{folder.name}/{name}", folder.label)
                for folder in folders[split]
                for name in folder.files
            ]
            for split in folders
        }
    except OSError as error:
        raise UserError(f"--data_dir {root}: cannot be read ({error})") from error


def decode_tree(
    root: Path,
    files: Mapping[str, Sequence[TreeFile]],
    *,
    resize: int,
    num_workers: int,
    cache_dir: str | None,
    digest: str | None,
) -> Decoded:
    """The images of these files, by split, from a cache file if none of them has changed since it was written.

    The digest covers relative names, sizes and ``resize``, not the pixels. Raises ``UserError`` before any image is
    opened if this is not ``digest``.
    """
    every_file = [file for split in files.values() for file in split]
    found = _hash(every_file, [str(file.size) for file in every_file], str(resize))
    if digest not in (None, found):
        raise UserError(f"--data_dir {root}: holds other images than those wanted; name the folder that has them")
    folder = Path(cache_dir).expanduser() if cache_dir is not None else default_cache_dir()
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
    labels = {split: torch.tensor([file.label for file in files[split]]) for split in files}
    return Decoded({split: LabelledImages(images[split], labels[split]) for split in files}, found)


def _hash(files: Sequence[TreeFile], stamps: Sequence[str], header: str) -> str:
    digest = hashlib.sha256(os.fsencode(header))
    for file, stamp in zip(files, stamps, strict=True):
        digest.update(os.fsencode(f"\0{file.name}\0{stamp}"))
    return digest.hexdigest()
