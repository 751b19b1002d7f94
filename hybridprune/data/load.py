"""The registry of data sources."""

from __future__ import annotations

import difflib

from hybridprune.data.cinic10 import CINIC10, load_cinic10
from hybridprune.data.dataset import Dataset
from hybridprune.data.digits import load_digits
from hybridprune.data.image_folder import load_image_folder
from hybridprune.data.tiny_imagenet import TINY_IMAGENET, load_tiny_imagenet
from hybridprune.data.torchvision_cifar import load_cifar
from hybridprune.data.torchvision_svhn import PARTS, load_svhn
from hybridprune.data.tree import load_tree
from hybridprune.errors import UserError

DATASETS = ("tree", "imagefolder", "cifar10", "cifar100", "svhn", "svhn-extra", "cinic10", "tiny-imagenet", "digits")
UNPACKED = {"cinic10": (CINIC10, load_cinic10), "tiny-imagenet": (TINY_IMAGENET, load_tiny_imagenet)}
"""Sets that are downloaded and unpacked by hand."""
_MIN_SIZE = 8


def load_dataset(
    *,
    dataset: str,
    data_dir: str | None,
    img_type: str,
    resize: int,
    num_workers: int,
    download: bool,
    cache_dir: str | None,
    digest: str | None = None,
) -> Dataset:
    """Load a data set by its registered name, with all images ``resize`` x ``resize``.

    ``img_type`` concerns image trees that are no published set, ``num_workers`` all trees, ``cache_dir`` (None: the
    user's cache folder) those that are decoded once, ``download`` the CIFAR and SVHN sets; "digits" needs no
    ``data_dir``. With a ``digest``, no image of a tree of another one is opened. Raises ``UserError`` on whatever the
    user can mend.
    """
    if dataset not in DATASETS:
        close = difflib.get_close_matches(dataset.lower(), DATASETS, n=1)
        remedy = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(DATASETS)}"
        raise UserError(f"--dataset {dataset} is unknown: {remedy}")
    if resize < _MIN_SIZE:
        raise UserError(f"--resize {resize} is too small: give at least {_MIN_SIZE}")
    if dataset == "tree":
        return load_tree(
            data_dir, img_type=img_type, resize=resize, num_workers=num_workers, cache_dir=cache_dir, digest=digest
        )
    if dataset == "imagefolder":
        return load_image_folder(data_dir, img_type=img_type, resize=resize, num_workers=num_workers)
    if dataset == "digits":
        return load_digits(resize=resize)
    if dataset in UNPACKED:
        published, load = UNPACKED[dataset]
        if download:
            published.refuse_download()
        return load(data_dir, resize=resize, num_workers=num_workers, cache_dir=cache_dir, digest=digest)
    if dataset in PARTS:
        return load_svhn(dataset, data_dir, resize=resize, download=download)
    return load_cifar(dataset, data_dir, resize=resize, download=download)
