"""Telling the parts that work from those that do not, by trying many of them together (pure)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")

Check = Callable[[Sequence[T]], str | None]
"""Why these do not work together; None if they do."""


def partition(items: Sequence[T], check: Check[T]) -> tuple[list[T], list[tuple[T, str]]]:
    """The items that work, in order, and the others with the reason.

    All are tried together, then halves: with f that fail of n it takes about 2 f log n checks. Where two halves work
    by themselves but not together, the second one is given up.
    """
    reason = check(items) if items else None
    if reason is None:
        return list(items), []
    if len(items) == 1:
        return [], [(items[0], reason)]
    middle = len(items) // 2
    first, failed = partition(items[:middle], check)
    second, others = partition(items[middle:], check)
    failed += others
    if first and second and (reason := check([*first, *second])) is not None:
        return first, [*failed, *((item, reason) for item in second)]
    return [*first, *second], failed
