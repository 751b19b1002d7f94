"""JSON as all parts read and write it: files that people edit too, and numbers that are not finite."""

from __future__ import annotations

import json
import math
import sys
import textwrap
from pathlib import Path
from typing import Any

LARGEST_INT = 2**63 - 1
"""JSON's integers, and Python's, have no end; those of tensors do."""


def read_json(path: Path) -> Any:
    """The value in a JSON file, which is UTF-8 with or without a byte-order mark.

    Raises OSError if it cannot be read, and ValueError, in one line, if it is of another encoding, no JSON, nested too
    deeply, or has a key twice in one object.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError("not in UTF-8: save it in that encoding") from error
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def json_text(value: Any, indent: int | None = None) -> str:
    """``value`` as JSON; a number that is not finite, which JSON does not have, becomes ``null``."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def value_at(data: Any, name: str, kind: type, low: float = -math.inf, high: float = math.inf) -> Any:
    """The value at a dotted ``name`` of nested objects, of this ``kind`` (float: any number; object: anything).

    Raises ValueError, naming it, if it is missing, of another kind (true and false are no numbers), or a number that is
    not finite, too large for a machine's integer or double, or not in ``[low, high]``.
    """
    for key in name.split("."):
        if not isinstance(data, dict) or key not in data:
            raise ValueError(f"{name} is missing")
        data = data[key]
    wanted = int | float if kind is float else kind
    if not isinstance(data, wanted) or (isinstance(data, bool) and kind not in (bool, object)):
        raise ValueError(f"{name} is {short(data)}, which is no {kind.__name__}")
    largest = LARGEST_INT if kind is int else sys.float_info.max
    if kind in (int, float) and not (low <= data <= high and abs(data) <= largest):
        raise ValueError(f"{name} is {short(data)}, which is not in [{low}, {high}]")
    return data


def texts_at(data: Any, name: str) -> list[str]:
    """A list of texts, as `value_at` finds it."""
    found = value_at(data, name, list)
    if not all(isinstance(each, str) for each in found):
        raise ValueError(f"{name} is {short(found)}, which is no list of texts")
    return found


def numbers_at(data: Any, name: str, low: float = -math.inf, high: float = math.inf) -> list[float]:
    """A list of finite numbers in ``[low, high]``, as `value_at` finds it."""
    found = value_at(data, name, list)
    for place, each in enumerate(found):
        value_at({f"{name}[{place}]": each}, f"{name}[{place}]", float, low, high)
    return found


def short(value: Any) -> str:
    """A value as code writes it, cut to 60 characters: a file's may be of any length."""
    return textwrap.shorten(repr(value), 60, placeholder=" ...")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {short(key)} is there twice: remove one")
        found[key] = value
    return found


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
