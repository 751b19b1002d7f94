"""JSON as all parts read and write it: files that people edit too, and numbers that are not finite."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any


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


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} is there twice: remove one")
        found[key] = value
    return found


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
