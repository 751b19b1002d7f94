"""SVHN, street view house numbers (Netzer et al. 2011), from torchvision's files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from hybridprune.data.dataset import Dataset, LabelledImages
from hybridprune.data.resize import resize_images
from hybridprune.data.torchvision_files import folder_of, reading

PARTS = {"svhn": ("train",), "svhn-extra": ("train", "extra")}
"""The training images: 73,257, or with the easier ones of ``extra`` 604,388."""


def load_svhn(name: str, data_dir: str | None, *, resize: int, download: bool) -> Dataset:
    """Load "svhn" or "svhn-extra" from ``data_dir``, downloading it there first if asked to; see `PARTS`.

    Class ``i`` is the digit i, and no image is flipped. Raises ``UserError`` if files are missing or corrupt, or the
    download fails.
    """
    root = folder_of(name, data_dir)
    train, test = (_read(name, root, parts, resize, download) for parts in (PARTS[name], ("test",)))
    classes = tuple(map(str, range(10)))
    return Dataset.in_memory(name, train, test, classes, flippable=False)


def _read(name: str, root: Path, parts: Sequence[str], resize: int, download: bool) -> LabelledImages:
    # Here and not above: torchvision is slow to import.
    from torchvision.datasets import SVHN

    images, labels = [], []
    for part in parts:
        with reading(name, root / SVHN.split_list[part][1], download):
            found = SVHN(root, split=part, download=download)
        images.append(resize_images(torch.from_numpy(np.ascontiguousarray(found.data)), resize))
        labels.append(torch.from_numpy(found.labels))
    return LabelledImages(torch.cat(images), torch.cat(labels))
