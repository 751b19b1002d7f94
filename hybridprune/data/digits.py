"""scikit-learn's embedded handwritten digits: a data set that needs no file and no network."""

from __future__ import annotations

import torch

from hybridprune.data.dataset import Dataset, LabelledImages
from hybridprune.data.resize import resize_images
from hybridprune.data.split import make_split

_TEST_FRACTION = 0.2
_TEST_SEED = 0  # fixed: the test set is part of the data set's definition


def load_digits(*, resize: int) -> Dataset:
    """1,797 grey 8x8 digits (UCI optical recognition test set, Alpaydin & Kaynak 1998), as RGB.

    A fixed stratified fifth is the test set.
    """
    # Here and not above: scikit-learn takes longer to import than everything of ours, and no other data needs it.
    from sklearn import datasets

    pixels, target = datasets.load_digits(return_X_y=True)
    grey = (torch.as_tensor(pixels).view(-1, 8, 8) * (255 / 16)).round().to(torch.uint8)
    images = resize_images(grey[:, None].expand(-1, 3, -1, -1), resize)
    labels = torch.as_tensor(target, dtype=torch.int64)
    split = make_split(labels, _TEST_FRACTION, seed=_TEST_SEED)
    train, test = (LabelledImages(images[ids], labels[ids]) for ids in (split.train, split.validation))
    classes = tuple("0123456789")
    return Dataset.in_memory("digits", train, test, classes, flippable=False)
