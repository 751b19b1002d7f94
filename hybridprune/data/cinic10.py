"""CINIC-10 (Darlow et al. 2018, arXiv 1810.03505) in its authors' folders: train, valid and test of 90,000 images."""

from __future__ import annotations

import torch

from hybridprune.data.dataset import Dataset, LabelledImages
from hybridprune.data.listing import list_tree
from hybridprune.data.tree import decode_tree, files_of
from hybridprune.data.unpacked import Unpacked

CINIC10 = Unpacked(
    "cinic10",
    "CINIC-10",
    "https://datashare.ed.ac.uk/handle/10283/3192",
    ("train", "valid", "test"),
)
_SPLITS = {name: (name,) for name in CINIC10.holds}
_MEAN, _STD = (0.47889522, 0.47227842, 0.43047404), (0.24205776, 0.23828046, 0.25874835)
"""As its authors publish them: README of github.com/BayesWatch/cinic-10."""


def load_cinic10(
    data_dir: str | None, *, resize: int, num_workers: int, cache_dir: str | None, digest: str | None = None
) -> Dataset:
    """Load the PNG files of ``train``, ``valid`` and ``test`` with their ten class folders.

    The images of ``valid`` are held out: they are the validation images, and none is trained on. Pixels are normalised
    by the published mean and deviation. Raises ``UserError`` if folders are missing or hold anything else.
    """
    root = CINIC10.folder(data_dir)
    classes, folders = list_tree(root, _SPLITS, "png")
    images, found = decode_tree(
        root, files_of(root, folders), resize=resize, num_workers=num_workers, cache_dir=cache_dir, digest=digest
    )
    parts = images["train"], images["valid"]
    train = LabelledImages(torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts]))
    return Dataset(
        name=CINIC10.name,
        train=train,
        test=images["test"],
        classes=classes,
        mean=_MEAN,
        std=_STD,
        flippable=True,
        digest=found,
        held_out=len(images["valid"]),
    )
