"""The one type of what a network is trained, measured and run on, whoever gives it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """Images ``[B, 3, H, W]`` and their class ids, int64 ``[B]``, that a network is trained on or run on at once.

    A user's own network and loss may take tensors of other shapes in their place, or structures of tensors.
    """

    images: Any
    labels: Any
    index: Tensor | None = None
    """Which images of the set they are, int64 ``[B]``; None where there is no such set."""
    share: Share | None = None
    """Where these images are in the batch of all processes; None if they are all of it."""

    @property
    def ids(self) -> Tensor:
        """The ``index``, where there is one: images get random numbers of their own by it."""
        assert self.index is not None, "a batch of no image set"
        return self.index

    @property
    def weight(self) -> float:
        """The weight of a mean over these images in the mean of all processes' means: 1 for equal shares."""
        return 1.0 if self.share is None else self.share.weight


def at_least_one(batches: Iterable[T], what: str) -> Iterator[T]:
    """The batches; ValueError that ``what`` needs one, once they have ended, if there was none."""
    empty = True
    for batch in batches:
        empty = False
        yield batch
    if empty:
        raise ValueError(f"{what} needs at least one batch of images")


@dataclass(frozen=True)
class Share:
    """One process's part of what several work on together: a range, as equal in length as can be."""

    start: int
    stop: int
    whole: int
    processes: int

    @staticmethod
    def of(whole: int, rank: int, processes: int) -> Share:
        """The part of the process ``rank``."""
        return Share(whole * rank // processes, whole * (rank + 1) // processes, whole, processes)

    @property
    def weight(self) -> float:
        """The part's length over the mean length of a part."""
        return (self.stop - self.start) * self.processes / self.whole
