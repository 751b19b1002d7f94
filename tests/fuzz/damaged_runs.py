"""Damage to the files of a finished run, by hand or by accident."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

NAMES = (
    *("config.json", "spec.json", "split.json", "result.json", "metrics.jsonl"),
    *("model.safetensors", "last.safetensors", "train_state.pt"),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 3, 0.5, -0.5, 1e308, math.nan, math.inf, 2**40, 10**400),
    *("", "8", "../outside", "\x00", "x" * 5000, [], [1], [[1]], {}, {"a": 1}, ["a", "a"]),
)


@dataclass(frozen=True)
class Damage:
    """One thing that happens to one file of a run."""

    kind: str
    name: str
    where: float
    """Of the file or of its values, in [0, 1)."""
    value: Any

    def __call__(self, run: Path) -> None:
        """Do it; nothing happens where the file is missing or is not of the kind."""
        path = run / self.name
        if not path.is_file():
            return
        content = path.read_bytes()
        at = int(self.where * len(content))
        if self.kind == "delete":
            path.unlink()
        elif self.kind == "cut":
            path.write_bytes(content[:at])
        elif self.kind == "flip" and content:
            path.write_bytes(content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :])
        elif self.kind == "append":
            path.write_bytes(content + b"\x00garbage\n{")
        elif self.kind == "swap":
            other = run / NAMES[int(self.where * len(NAMES))]
            if other.is_file():
                path.write_bytes(other.read_bytes())
                other.write_bytes(content)
        elif self.kind == "folder":
            path.unlink()
            path.mkdir()
        elif self.kind == "link":
            path.unlink()
            path.symlink_to(run / "nowhere")
        elif self.kind == "mark":
            path.write_bytes(b"\xef\xbb\xbf" + content)
        elif self.kind in ("replace", "drop", "newer"):
            self._edit(path)

    def _edit(self, path: Path) -> None:
        try:
            record = json.loads(path.read_text().splitlines()[0] if path.suffix == ".jsonl" else path.read_text())
        except (ValueError, IndexError):
            return
        if self.kind == "newer" and isinstance(record, dict):
            record |= {"format": 10_000}
        elif places := list(_places(record)):
            holder, key = places[int(self.where * len(places))]
            if self.kind == "drop":
                del holder[key]
            else:
                holder[key] = self.value
        path.write_text(json.dumps(record))


def _places(record: Any) -> Iterator[tuple[Any, Any]]:
    """Every value within a record: what holds it, and under which key. Of a long list, the first ones."""
    keys = list(record) if isinstance(record, dict) else range(min(len(record), 3)) if isinstance(record, list) else ()
    for key in keys:
        yield record, key
        yield from _places(record[key])


def unchanged(folder: Path) -> dict[Path, tuple[int, int, int]]:
    """What tells whether a file below the folder has been written to: its number, size and time of change."""
    found = {}
    for path in folder.rglob("*"):
        status = os.lstat(path)
        if not path.is_dir():
            found[path] = (status.st_ino, status.st_size, status.st_mtime_ns)
    return found


DAMAGES = st.builds(
    Damage,
    st.sampled_from(
        ["delete", "cut", "flip", "append", "swap", "folder", "link", "mark", "newer", *["replace"] * 6, *["drop"] * 3]
    ),
    st.sampled_from([*NAMES, "config.json", "spec.json", "spec.json", "result.json", "result.json", "split.json"]),
    st.floats(0, 1, exclude_max=True),
    st.sampled_from(VALUES),
)
