from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from hybridprune.data import Dataset, LabelledImages, TrainBatches, hold_out, make_split, validation_split
from hybridprune.errors import UserError

CLASSES, PER_CLASS, TESTS = 3, 20, 10


def images(count: int, first: int) -> LabelledImages:
    """Images that are their own number, counted from ``first``; class ids go round."""
    numbers = torch.arange(first, first + count, dtype=torch.uint8)
    return LabelledImages(numbers.view(-1, 1, 1, 1).expand(-1, 3, 8, 8).contiguous(), torch.arange(count) % CLASSES)


DATA = Dataset(
    name="numbers",
    train=images(CLASSES * PER_CLASS, 0),
    test=images(CLASSES * TESTS, 100),
    classes=("a", "b", "c"),
    mean=(0.0,) * 3,
    std=(1.0,) * 3,
    flippable=False,
    digest="",
)


def numbers(pixels: Tensor) -> list[int]:
    return pixels[:, 0, 0, 0].tolist()


def test_a_fifth_of_the_test_images_is_for_validation_and_the_others_for_figures() -> None:
    data = hold_out(DATA)
    split = validation_split(data)
    held, rest = data.train.pixels(split.validation), data.test.pixels(torch.arange(len(data.test)))
    assert len(held) == data.held_out == CLASSES * TESTS // 5
    assert sorted(numbers(held) + numbers(rest)) == list(range(100, 100 + CLASSES * TESTS))
    assert numbers(data.train.pixels(split.train)) == list(range(CLASSES * PER_CLASS))
    assert data.train.labels[split.validation].bincount().tolist() == [TESTS // 5] * CLASSES
    for part, pixels in ((data.train.labels[split.validation], held), (data.test.labels, rest)):
        assert part.tolist() == [(number - 100) % CLASSES for number in numbers(pixels)]
    assert split.total == len(data.train) == CLASSES * PER_CLASS + data.held_out


def test_batches_of_either_kind_are_read_and_mixed_ones_never() -> None:
    data = hold_out(DATA)
    last = len(DATA.train)
    plain = list(data.train.plain([torch.tensor([1, 0]), torch.tensor([2])], lambda x: x))
    assert [numbers(each) for each in plain] == [[1, 0], [2]]
    (held,) = data.train.plain([torch.tensor([last + 1, last])], lambda x: x)
    assert torch.equal(held, data.train.pixels(torch.tensor([last + 1, last]))) and min(numbers(held)) >= 100
    with pytest.raises(AssertionError, match="for choices"):
        data.train.pixels(torch.tensor([0, last]))


def test_training_sees_what_it_sees_without() -> None:
    data = hold_out(DATA)

    def epoch(of: Dataset, ids: Tensor) -> list[Tensor]:
        common = {"mean": of.mean, "std": of.std, "crop": True, "flip": True, "device": "cpu", "channels_last": False}
        return [x.images for x in TrainBatches(of.train, ids, batch_size=10, seed=1, **common).epoch(0)]  # type: ignore

    for with_it, without in zip(
        epoch(data, validation_split(data).train), epoch(DATA, torch.arange(len(DATA.train))), strict=True
    ):
        assert torch.equal(with_it, without)


def test_the_rest_of_the_test_set_is_augmented_as_the_whole() -> None:
    data = hold_out(DATA)
    rest = make_split(DATA.test.labels, 0.2, seed=0).train
    read = [
        of.augmented(torch.Generator().manual_seed(3), crop=True, flip=False)([ids], lambda x: x)
        for of, ids in ((data.test, torch.arange(4)), (DATA.test, rest[:4]))
    ]
    assert torch.equal(*(next(iter(each)) for each in read))


def test_without_it_validation_is_a_tenth_of_the_training_images() -> None:
    split = validation_split(DATA)
    assert len(split.validation) == CLASSES * PER_CLASS // 10 and split.total == len(DATA.train)


def test_a_single_test_image_of_a_class_is_refused() -> None:
    few = dataclasses.replace(DATA, test=images(4, 100))
    with pytest.raises(UserError, match="--validation_from test: each class needs at least two test images"):
        hold_out(few)
