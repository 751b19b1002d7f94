"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) from torchvision's files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from hybridprune.data.dataset import Dataset, LabelledImages
from hybridprune.data.resize import resize_images
from hybridprune.data.torchvision_files import folder_of, reading

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10


def load_cifar(name: str, data_dir: str | None, *, resize: int, download: bool) -> Dataset:
    """Load "cifar10" or "cifar100" (fine labels) from ``data_dir``, downloading it there first if asked to.

    Raises ``UserError`` if the files are missing or corrupt, or the download fails.
    """
    root = folder_of(name, data_dir)
    # Here and not above: torchvision is slow to import.
    from torchvision import datasets

    dataset = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    with reading(name, root / dataset.base_folder, download):
        train, test = dataset(root, train=True, download=download), dataset(root, train=False)
    return Dataset.in_memory(
        name, _labelled(train, resize), _labelled(test, resize), tuple(train.classes), flippable=True
    )


def _labelled(part: CIFAR10, resize: int) -> LabelledImages:
    images = torch.from_numpy(part.data).permute(0, 3, 1, 2)
    return LabelledImages(resize_images(images, resize), torch.tensor(part.targets))
