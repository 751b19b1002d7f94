from __future__ import annotations

import numpy as np
import torch
from sklearn import datasets

from hybridprune.data.digits import load_digits
from tests.networks_and_images import all_pixels


def test_content() -> None:
    dataset = load_digits(resize=8)
    assert len(dataset.train) + len(dataset.test) == 1797 and 355 <= len(dataset.test) <= 365
    assert dataset.classes == tuple("0123456789") and not dataset.flippable
    original = datasets.load_digits(return_X_y=True)[0] / 16
    for images in (all_pixels(dataset.train), all_pixels(dataset.test)):
        assert torch.equal(images[:, 0], images[:, 1]) and torch.equal(images[:, 0], images[:, 2])
    both = torch.cat([all_pixels(dataset.train), all_pixels(dataset.test)])[:, 0].double() / 255
    assert np.allclose(np.sort(both.numpy().ravel()), np.sort(original.ravel()), atol=1 / 255)


def test_every_image_keeps_its_label() -> None:
    dataset = load_digits(resize=8)
    pixels, target = datasets.load_digits(return_X_y=True)
    scaled = np.rint(pixels * 255 / 16).astype(np.uint8)
    labels = {row.tobytes(): label for row, label in zip(scaled, target, strict=True)}
    for data in (dataset.train, dataset.test):
        found = [labels[image[0].numpy().tobytes()] for image in all_pixels(data)]
        assert found == data.labels.tolist()


def test_test_set_is_stratified() -> None:
    dataset = load_digits(resize=8)
    train, test = dataset.train.labels.bincount(), dataset.test.labels.bincount()
    assert torch.allclose(test / (train + test), torch.tensor(0.2), atol=0.005)


def test_repeated_loads_are_identical_and_the_size_counts() -> None:
    first, second, other = load_digits(resize=32), load_digits(resize=32), load_digits(resize=16)
    assert torch.equal(all_pixels(first.train), all_pixels(second.train)) and first.digest == second.digest
    assert torch.equal(first.train.labels, other.train.labels) and first.digest != other.digest
    assert all_pixels(other.test).shape[1:] == (3, 16, 16)
