"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) from torchvision's files."""

from __future__ import annotations

from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from hybridprune.data.dataset import Dataset, LabelledImages, array_digest, pixel_statistics
from hybridprune.data.resize import resize_images
from hybridprune.errors import UserError

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10


def load_cifar(name: str, data_dir: str | None, *, resize: int, download: bool) -> Dataset:
    """Load "cifar10" or "cifar100" (fine labels) from ``data_dir``, downloading it there first if asked to.

    Raises ``UserError`` if the files are missing or corrupt, or the download fails.
    """
    if data_dir is None:
        raise UserError(f"--data_dir is missing: give the folder that holds (or is to hold) {name}")
    # Here and not above: torchvision is slow to import.
    from torchvision import datasets

    root = Path(data_dir).expanduser()
    dataset = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    try:
        # torchvision unpickles these files, but only after comparing their md5 with the published ones.
        train, test = dataset(root, train=True, download=download), dataset(root, train=False)
    except (RuntimeError, OSError, HTTPException) as error:
        folder = root / dataset.base_folder
        if download:
            reason = " ".join(str(error).split())
            message = f"--download: {name} could not be fetched into {root} ({reason}); check the network"
        elif folder.exists():
            message = f"{folder} is incomplete or corrupt: delete it and give --download"
        else:
            message = f"--data_dir {root} holds no {dataset.base_folder}: give --download to fetch {name}"
        raise UserError(message) from error
    sets = [_labelled(part, resize) for part in (train, test)]
    classes = tuple(train.classes)
    mean, std = pixel_statistics(sets[0].images)
    return Dataset(
        name=name,
        train=sets[0],
        test=sets[1],
        classes=classes,
        mean=mean,
        std=std,
        flippable=True,
        digest=array_digest(classes, *sets),
    )


def _labelled(part: CIFAR10, resize: int) -> LabelledImages:
    images = torch.from_numpy(part.data).permute(0, 3, 1, 2)
    return LabelledImages(resize_images(images, resize), torch.tensor(part.targets))
