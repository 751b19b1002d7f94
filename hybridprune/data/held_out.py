"""Validation images that networks of other people's have not seen: a part of the test images.

Published networks were trained on all training images. What is chosen on these, an epoch or a threshold, is chosen on
images that they know by heart. So a fifth of the test images is for choices, and figures are of the others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hybridprune.data.dataset import Dataset, ImageSet, Reader, Send
from hybridprune.data.split import Split, make_split
from hybridprune.errors import UserError

TRAIN_SHARE = 0.1
"""The share of the training images that is for validation, where these come from there."""
TEST_SHARE = 0.2
"""That of the test images."""


@dataclass(frozen=True)
class Part:
    """A part of an image set, its images ``ids`` int64 ``[N]``, counted anew."""

    whole: ImageSet
    ids: Tensor

    @property
    def labels(self) -> Tensor:
        """Class ids, int64 ``[N]``."""
        return self.whole.labels[self.ids]

    def __len__(self) -> int:
        return len(self.ids)

    def pixels(self, ids: Tensor) -> Tensor:
        """The pixels of these images."""
        return self.whole.pixels(self.ids[ids])

    def plain(self, batches: Sequence[Tensor], send: Send) -> Iterator[Tensor]:
        """The images as they are evaluated."""
        return self.whole.plain([self.ids[ids] for ids in batches], send)

    def augmented(self, generator: torch.Generator, *, crop: bool, flip: bool) -> Reader:
        """Drawn as for the whole set."""
        read = self.whole.augmented(generator, crop=crop, flip=flip)
        return lambda batches, send: read([self.ids[ids] for ids in batches], send)


@dataclass(frozen=True)
class Extended:
    """A training set, and behind it images that are never trained on."""

    trained: ImageSet
    others: ImageSet

    @property
    def labels(self) -> Tensor:
        """Class ids, int64 ``[N]``."""
        return torch.cat([self.trained.labels, self.others.labels])

    def __len__(self) -> int:
        return len(self.trained) + len(self.others)

    def pixels(self, ids: Tensor) -> Tensor:
        """The images, all of them of one kind."""
        part, (numbers,) = self._part([ids])
        return part.pixels(numbers)

    def plain(self, batches: Sequence[Tensor], send: Send) -> Iterator[Tensor]:
        """The images as they are evaluated, all of them of one kind."""
        part, batches = self._part(batches)
        return part.plain(batches, send)

    def augmented(self, generator: torch.Generator, *, crop: bool, flip: bool) -> Reader:
        """The training set's."""
        return self.trained.augmented(generator, crop=crop, flip=flip)

    def _part(self, batches: Sequence[Tensor]) -> tuple[ImageSet, Sequence[Tensor]]:
        """The set that all ids are of, and their numbers in it."""
        count = len(self.trained)
        if all(bool((ids < count).all()) for ids in batches):
            return self.trained, batches
        assert all(bool((ids >= count).all()) for ids in batches), "images for training and for choices in one batch"
        return self.others, [ids - count for ids in batches]


def hold_out(dataset: Dataset) -> Dataset:
    """The data set with a stratified fifth of its test images moved behind its training images.

    Raises UserError if a class has a single test image.
    """
    labels = dataset.test.labels
    if int((counts := labels.bincount()).max()) < 2 or bool((counts == 1).any()):
        raise UserError(
            "--validation_from test: each class needs at least two test images, and one has less; give more, or "
            "--validation_from train"
        )
    split = make_split(labels, TEST_SHARE, seed=0)
    others = Part(dataset.test, split.validation)
    return dataclasses.replace(
        dataset, train=Extended(dataset.train, others), test=Part(dataset.test, split.train), held_out=len(others)
    )


def validation_split(dataset: Dataset) -> Split:
    """The split of the training images: what is held out is for validation, or else a stratified tenth."""
    total = len(dataset.train)
    if not dataset.held_out:
        return make_split(dataset.train.labels, TRAIN_SHARE, seed=0)
    ids = torch.arange(total)
    return Split(ids[: total - dataset.held_out], ids[total - dataset.held_out :], total)
