"""Batches of any structure: tensors (or numpy arrays), sequences and mappings within each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def images_in(batch: Any) -> int | None:
    """The number of images that a batch holds; None if nothing in it says so.

    It is the first dimension of a tensor; of a sequence or mapping, that of its first tensor, or of the first tensor of
    its first mapping, or the length of its first sequence (``(list of images, list of targets)``).
    """
    if isinstance(batch, Tensor | np.ndarray):
        return len(batch) if batch.ndim else None
    columns = list(batch.values()) if isinstance(batch, Mapping) else batch
    if not _is_sequence(columns):
        return None
    nested = [column for column in columns if isinstance(column, Tensor | np.ndarray | Mapping)]
    for column in sorted(nested, key=lambda column: isinstance(column, Mapping)):  # stable
        if (found := images_in(column)) is not None:
            return found
    return next((len(column) for column in columns if _is_sequence(column)), None)


def some_images(batch: Any, places: Sequence[int]) -> Any:
    """The images at these places (again and again, if a place is named more than once), in the batch's own structure.

    Whatever is as long as the batch has images is indexed; everything else stays as it is.
    """
    whole = images_in(batch)
    assert whole is not None, "a batch without images"

    def chosen(column: Any, top: bool) -> Any:
        if isinstance(column, Tensor | np.ndarray):
            return column[list(places)] if column.ndim and len(column) == whole else column
        if isinstance(column, Mapping):
            return _like(column, {key: chosen(value, False) for key, value in column.items()})
        if not _is_sequence(column):
            return column
        if not top and len(column) == whole:
            return _like(column, [column[place] for place in places])
        return _like(column, [chosen(value, False) for value in column])

    return chosen(batch, True)


def joined(batches: Sequence[Any]) -> list[Any]:
    """One batch of all images of batches of the same structure, or the batches, if their images differ in shape."""
    counts = [images_in(batch) for batch in batches]

    def together(columns: Sequence[Any], top: bool) -> Any:
        first = columns[0]
        if isinstance(first, Tensor | np.ndarray):
            of_images = all(c.ndim and len(c) == n for c, n in zip(columns, counts, strict=True))
            join = torch.cat if isinstance(first, Tensor) else np.concatenate
            return join(list(columns)) if of_images else first
        if isinstance(first, Mapping):
            return _like(first, {key: together([column[key] for column in columns], False) for key in first})
        if not _is_sequence(first):
            return first
        if not top and all(len(c) == n for c, n in zip(columns, counts, strict=True)):
            return _like(first, [value for column in columns for value in column])
        return _like(first, [together(values, False) for values in zip(*columns, strict=True)])

    try:
        return [together(batches, True)]
    except (RuntimeError, ValueError):  # of torch or numpy: shapes differ
        return list(batches)


def on_device(batch: Any, device: torch.device | str) -> Any:
    """The batch with all of its tensors, and whatever else has ``.to``, on ``device``."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if _is_sequence(batch):
        return _like(batch, [on_device(value, device) for value in batch])
    if callable(move := getattr(batch, "to", None)):
        return move(device)
    if isinstance(batch, Mapping):
        return _like(batch, {key: on_device(value, device) for key, value in batch.items()})
    return batch


def with_tensors(batch: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The batch with another tensor in the place of each of its tensors."""
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, Mapping):
        return _like(batch, {key: with_tensors(value, change) for key, value in batch.items()})
    return _like(batch, [with_tensors(value, change) for value in batch]) if _is_sequence(batch) else batch


def tensors_in(batch: Any) -> Iterator[Tensor]:
    """All tensors of a batch, in their order."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from tensors_in(value)
    elif _is_sequence(batch):
        for value in batch:
            yield from tensors_in(value)


def _is_sequence(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _like(container: Any, values: Any) -> Any:
    """A sequence or mapping of the same kind: a named tuple, a dictionary with attributes; else a plain dictionary."""
    if isinstance(container, tuple) and hasattr(container, "_fields"):
        return type(container)(*values)
    try:
        return type(container)(values)
    except TypeError:  # a mapping that is made of something else
        if isinstance(container, Mapping):
            return values
        raise
