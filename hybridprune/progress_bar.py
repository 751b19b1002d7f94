# pyright: strict
"""Progress bars over what may take long. They are shown on a terminal alone, and change nothing that is computed."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from tqdm import tqdm

from hybridprune.processes import is_first

T = TypeVar("T")

DELAY = 1.0
"""Seconds after which a bar appears: what is done sooner needs none."""
_wanted: ContextVar[bool] = ContextVar("progress bars", default=True)


@contextmanager
def progress_bars(wanted: bool) -> Generator[None]:
    """Inside, bars are shown (where standard error is a terminal, by the first process), or none are."""
    token = _wanted.set(wanted)
    try:
        yield
    finally:
        _wanted.reset(token)


def bar(
    items: Iterable[T] = (), *, description: str, total: int | None = None, unit: str = "step", start: int = 0
) -> tqdm[T]:
    """A bar over ``items``, or to be updated by hand from ``start`` up to ``total``; it goes when it is done."""
    return tqdm(
        items,
        desc=description,
        total=total,
        initial=start,
        unit=unit,
        leave=False,
        delay=DELAY,
        file=sys.stderr,
        disable=None if _wanted.get() and is_first() else True,
    )


@dataclass(frozen=True)
class Steps(Generic[T]):
    """Items with a bar over them, each time that they are gone through."""

    items: Iterable[T]
    description: str
    unit: str = "batch"

    def __iter__(self) -> Iterator[T]:
        return iter(bar(self.items, description=self.description, unit=self.unit))

    def __len__(self) -> int:
        """As many as there are; TypeError where ``items`` do not say."""
        items: Any = self.items
        return len(items)
