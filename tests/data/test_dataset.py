from __future__ import annotations

import pytest
import torch

from hybridprune.data import LabelledImages
from hybridprune.data.dataset import Dataset, array_digest, pixel_statistics


def test_statistics_across_chunks_equal_those_of_the_whole() -> None:
    images = torch.randint(256, (2500, 3, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = pixel_statistics(images)
    pixels = images.to(torch.float64).transpose(0, 1).flatten(1) / 255
    assert mean == pytest.approx(pixels.mean(dim=1).tolist(), rel=1e-12)
    assert std == pytest.approx(pixels.std(dim=1, correction=0).tolist(), rel=1e-12)


def test_constant_channel_can_be_divided_by() -> None:
    _, std = pixel_statistics(torch.full((4, 3, 2, 2), 7, dtype=torch.uint8))
    assert std == pytest.approx((1 / 255,) * 3)


@pytest.mark.parametrize("changed", ["pixel", "label", "class", "shape"])
def test_digest_sees_every_part(changed: str) -> None:
    images, labels, classes = torch.zeros(2, 3, 4, 8, dtype=torch.uint8), torch.tensor([0, 1]), ["a", "b"]
    before = array_digest(classes, LabelledImages(images, labels))
    assert before == array_digest(classes, LabelledImages(images.clone(), labels.clone()))
    if changed == "pixel":
        images[1, 2, 3, 4] = 1
    elif changed == "label":
        labels[1] = 0
    elif changed == "class":
        classes[1] = "c"
    else:
        images = images.view(2, 3, 8, 4)
    assert before != array_digest(classes, LabelledImages(images, labels))


def test_a_set_in_memory_is_normalised_by_its_train_images_and_known_by_all() -> None:
    """The order within a digest is part of it: runs made before know their images by it."""
    train, test = (
        LabelledImages(torch.full((n, 3, 2, 2), n, dtype=torch.uint8), torch.zeros(n, dtype=torch.int64))
        for n in (2, 5)
    )
    found = Dataset.in_memory("few", train, test, ("a",), flippable=False)
    assert (found.mean, found.std) == pixel_statistics(train.images)
    assert found.digest == array_digest(("a",), train, test) != array_digest(("a",), test, train)
    assert Dataset.in_memory("few", train, test, ("a",), flippable=False, digest="own").digest == "own"
