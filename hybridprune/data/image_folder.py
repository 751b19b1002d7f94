"""ImageNet-style trees, ``train/<class>/<image>`` and ``val/<class>/<image>``, streamed from their files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from hybridprune.data.dataset import Dataset
from hybridprune.data.listing import ClassFolder, list_tree
from hybridprune.data.stream import ImageFiles
from hybridprune.errors import UserError

# Accepted folder names, the first that exists is taken: ImageNet's own test folder has no labels.
_SPLITS = {"train": ("train", "training", "training_set"), "test": ("val", "validation", "test", "test_set")}
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, which pretrained weights expect


def load_image_folder(data_dir: str | None, *, img_type: str, resize: int, num_workers: int) -> Dataset:
    """List an ImageNet-style tree; its ``val`` is the protocol's test set. No image is read before it is needed.

    Classes are the folder names in alphabetical order, and normalisation is by ImageNet's constants. The digest covers
    ``resize``, all relative names, and the size of the first file of each class folder: to ask a million files for
    theirs takes minutes on network storage. Raises ``UserError`` as `list_tree` does.
    """
    if data_dir is None:
        raise UserError("--data_dir is missing: give the folder that holds train/<class>/ and val/<class>/")
    root = Path(data_dir).expanduser().resolve()
    classes, folders = list_tree(root, _SPLITS, img_type)
    train, test = (_streamed(folders[split], resize, num_workers) for split in ("train", "test"))
    return Dataset(
        name=root.name,
        train=train,
        test=test,
        classes=classes,
        mean=_MEAN,
        std=_STD,
        flippable=True,
        digest=_digest([folder for split in ("train", "test") for folder in folders[split]], resize),
        centre_crop=True,
    )


def _streamed(folders: Sequence[ClassFolder], resize: int, num_workers: int) -> ImageFiles:
    paths = [os.path.join(folder.path, name) for folder in folders for name in folder.files]
    labels = torch.tensor([folder.label for folder in folders])
    counts = torch.tensor([len(folder.files) for folder in folders])
    return ImageFiles(paths, labels.repeat_interleave(counts), size=resize, num_workers=num_workers)


def _digest(folders: Sequence[ClassFolder], resize: int) -> str:
    digest = hashlib.sha256(f"imagefolder {resize}".encode())
    for folder in folders:
        first = os.path.join(folder.path, folder.files[0])
        try:
            size = os.stat(first).st_size
        except OSError as error:
            raise UserError(f"{first}: cannot be read ({error})") from error
        digest.update(os.fsencode(f"\0\0{folder.name}\0{size}"))
        for name in folder.files:
            digest.update(os.fsencode(f"\0{name}"))
    return digest.hexdigest()
