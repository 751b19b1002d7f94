"""The validation split that is cut from the training images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hybridprune.errors import UserError
from hybridprune.json_text import value_at

MOST_IMAGES = 1 << 30


@dataclass(frozen=True)
class Split:
    """Sorted, disjoint ids (int64) into a training set of ``total`` images."""

    train: Tensor
    validation: Tensor
    total: int

    def to_json(self) -> dict[str, Any]:
        """The validation ids and the total; a limit on the train ids is not stored."""
        return {"validation": self.validation.tolist(), "total": self.total}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Split:
        """The split of a stored ``to_json``; all other images are train ids. ``ValueError`` on bad ids."""
        total = value_at(stored, "total", int, low=0, high=MOST_IMAGES)
        ids = value_at(stored, "validation", list)
        if not all(type(each) is int for each in ids):
            raise ValueError("validation ids are not whole numbers")
        validation = torch.tensor(ids, dtype=torch.int64)
        is_train = torch.ones(total, dtype=torch.bool)
        if ((validation < 0) | (validation >= total)).any() or (validation.diff() <= 0).any():
            raise ValueError(f"validation ids are not sorted, distinct and below {total}")
        is_train[validation] = False
        return cls(is_train.nonzero().flatten(), validation, total)

    def of_classes(self, classes: Sequence[int], labels: Tensor) -> Split:
        """The ids of images of these classes (none: of all), where ``labels`` are those of the whole training set."""
        assert labels.shape == (self.total,), labels.shape
        if not classes:
            return self
        kept = torch.isin(labels, torch.tensor(classes))
        return Split(self.train[kept[self.train]], self.validation[kept[self.validation]], self.total)

    def limit_train(self, n: int | None, labels: Tensor, seed: int) -> Split:
        """Keep ``n`` train ids (None: all), equally many of each class as far as there are; validation stays.

        ``labels`` are those of the whole training set. With the same seed a smaller ``n`` gives a subset.
        """
        assert labels.shape == (self.total,), labels.shape
        if n is None or n >= len(self.train):
            return self
        if n < 1:
            raise UserError(f"--max_train_samples {n} is too small: give at least 1")
        shuffled = self.train[torch.randperm(len(self.train), generator=torch.Generator().manual_seed(seed))]
        first = _rank_in_class(labels[shuffled]).argsort(stable=True)[:n]
        return Split(shuffled[first].sort().values, self.validation, self.total)


def make_split(labels: Tensor, fraction: float = 0.1, seed: int = 0) -> Split:
    """Draw a stratified validation split of a training set with ``labels``, int64 ``[N]``.

    A class of n images gives ``round(fraction * n)``, at least 1 and at most n - 1. Raises ``UserError`` if a
    class has a single image or ``fraction`` is not in (0, 1).
    """
    if not 0 < fraction < 1:
        raise UserError(f"the validation fraction is {fraction}: give a number between 0 and 1")
    counts = labels.bincount()
    if len(labels) == 0 or (counts == 1).any():
        raise UserError("too few training images for a validation split: each class needs at least two")
    quota = (fraction * counts.to(torch.float64)).round().to(torch.int64).clamp(min=1).minimum(counts - 1)
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    chosen = _rank_in_class(labels[shuffled]) < quota[labels[shuffled]]
    return Split(shuffled[~chosen].sort().values, shuffled[chosen].sort().values, len(labels))


def _rank_in_class(labels: Tensor) -> Tensor:
    """How many earlier elements have the same label, int64 ``[N]``."""
    order = labels.argsort(stable=True)
    counts = labels.bincount()
    starts = counts.cumsum(0) - counts
    ranks = torch.empty_like(labels)
    ranks[order] = torch.arange(len(labels)) - starts[labels[order]]
    return ranks
