"""Image trees: ``train/<class>/<image>`` and ``test/<class>/<image>``, decoded once and cached."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
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


class _File(NamedTuple):
    path: str
    name: str  # "train/<class>/<file>"
    size: int
    mtime_ns: int
    label: int


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

    Classes are the folder names in alphabetical order. The digest covers relative names, sizes and ``resize``, not the
    pixels. Raises ``UserError`` as `list_tree` does, and before any image is opened if this is not ``digest``.
    """
    if data_dir is None:
        raise UserError(
            "--data_dir is missing: give the folder that holds train/<class>/ and test/<class>/, or --dataset digits, "
            "which needs none"
        )
    root = Path(data_dir).expanduser().resolve()
    classes, folders = list_tree(root, _SPLITS, img_type)
    try:
        files = {split: [file for folder in folders[split] for file in _files(folder)] for split in folders}
    except OSError as error:
        raise UserError(f"--data_dir {data_dir}: cannot be read ({error})") from error

    every_file = [file for split in files.values() for file in split]
    found = _hash(every_file, [str(file.size) for file in every_file], str(resize))
    if digest not in (None, found):
        raise UserError(f"--data_dir {data_dir}: holds other images than those wanted; name the folder that has them")
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
    data = {
        split: LabelledImages(images[split], torch.tensor([file.label for file in files[split]])) for split in files
    }
    return Dataset.in_memory(root.name, data["train"], data["test"], classes, flippable=True, digest=found)


def _files(folder: ClassFolder) -> list[_File]:
    files = []
    for name in folder.files:
        path = os.path.join(folder.path, name)
        status = os.stat(path)
        files.append(_File(path, f"{folder.name}/{name}", status.st_size, status.st_mtime_ns, folder.label))
    return files


def _hash(files: Sequence[_File], stamps: Sequence[str], header: str) -> str:
    digest = hashlib.sha256(os.fsencode(header))
    for file, stamp in zip(files, stamps, strict=True):
        digest.update(os.fsencode(f"\0{file.name}\0{stamp}"))
    return digest.hexdigest()
