"""Results of long comparisons: one JSON line per arm, so that they grow over many sittings."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Line = dict[str, Any]


def read_lines(path: Path) -> list[Line]:
    """All complete lines; a last one that a kill has torn is left out."""
    lines: list[Line] = []
    for text in path.read_text().splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def append_line(path: Path, line: Mapping[str, Any]) -> None:
    """Add one line behind the complete ones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    complete = "".join(json.dumps(known) + "\n" for known in read_lines(path))
    if path.is_file() and path.read_text() != complete:
        path.write_text(complete)
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def find_line(lines: Sequence[Line], **key: Any) -> Line | None:
    """The line with these values, if it is there."""
    return next((line for line in lines if all(line.get(name) == value for name, value in key.items())), None)


def pack(correct: np.ndarray) -> str:
    """A 0/1 vector ``[M]`` as text."""
    return base64.b64encode(np.packbits(correct.astype(bool)).tobytes()).decode()


def unpack(text: str, count: int) -> np.ndarray:
    """The inverse of ``pack``."""
    return np.unpackbits(np.frombuffer(base64.b64decode(text), dtype=np.uint8))[:count].astype(bool)
