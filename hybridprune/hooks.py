"""Hooks that watch modules for a while."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch.utils.hooks import RemovableHandle


@contextmanager
def attached(hooks: Sequence[RemovableHandle]) -> Iterator[None]:
    """Inside, the modules have these hooks; afterwards they are removed."""
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
