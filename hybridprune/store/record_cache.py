"""Measurements on disk: a file each, found by all that they depend on, and used nowhere else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridprune.caller import warn_caller
from hybridprune.json_text import read_json, value_at
from hybridprune.store.files import write_json


@dataclass(frozen=True)
class RecordCache:
    """A folder of records."""

    folder: Path
    format: int
    content: str
    """The key in a file of what was measured."""
    told: str
    """What it is called in the warning that it could not be kept."""

    def read(self, key: Mapping[str, Any]) -> dict[str, Any] | None:
        """The record that was written for this key; None if there is none, or its file is broken or of another key."""
        try:
            record = read_json(self.path(key))
            if value_at(record, "format", int) != self.format or value_at(record, "key", dict) != dict(key):
                return None
            return value_at(record, self.content, dict)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def write(self, key: Mapping[str, Any], record: Mapping[str, Any]) -> None:
        """Keep a record; a folder that cannot be written to is only warned about."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.path(key), {"format": self.format, "key": dict(key), self.content: dict(record)})
        except OSError as error:
            warn_caller(f"{self.told} are not cached in {self.folder}: {error}", RuntimeWarning)

    def path(self, key: Mapping[str, Any]) -> Path:
        """The file of this key."""
        return self.folder / f"{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]}.json"
