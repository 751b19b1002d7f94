# pyright: strict
"""Progress bars over what may take long: on a terminal or in a notebook. They change nothing that is computed."""

from __future__ import annotations

import sys
import warnings
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
    """Inside, bars are shown (on a terminal or in a notebook, by the first process), or none are."""
    token = _wanted.set(wanted)
    try:
        yield
    finally:
        _wanted.reset(token)


def bar(
    items: Iterable[T] = (), *, description: str, total: int | None = None, unit: str = "step", start: int = 0
) -> tqdm[T]:
    """A bar over ``items``, or to be updated by hand from ``start`` up to ``total``; it goes when it is done."""
    notebook = in_notebook()
    return (_of_notebooks() if notebook else tqdm)(
        items,
        desc=description,
        total=total,
        initial=start,
        unit=unit,
        leave=False,
        delay=DELAY,
        file=sys.stderr,
        disable=(False if notebook else None) if _wanted.get() and is_first() else True,  # None: if no terminal
    )


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    if "IPython" not in sys.modules:
        return False
    shell: Any = sys.modules["IPython"].get_ipython()
    return shell is not None and "IPKernelApp" in shell.config


def _of_notebooks() -> type[tqdm[Any]]:
    """The bars of notebooks: widgets if ipywidgets is installed, else a line of text."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is not installed
        from tqdm.auto import tqdm as found
    return found


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
