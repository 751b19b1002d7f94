"""Tables of times on disk: a file a layer, found by all that a time depends on, and used nowhere else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridprune.caller import warn_caller
from hybridprune.data.cache import default_cache_dir
from hybridprune.json_text import read_json, value_at
from hybridprune.latency.table import Grid, Grids
from hybridprune.store.files import write_json

FORMAT = 1


def default_folder() -> Path:
    """``latency`` in the folder where decoded images are kept as well."""
    return default_cache_dir() / "latency"


@dataclass(frozen=True)
class TimeCache:
    """A folder of tables."""

    folder: Path

    def read(self, key: Mapping[str, Any]) -> Grids | None:
        """The table that was written for this key; None if there is none, or its file is broken or of another key."""
        try:
            record = read_json(self._path(key))
            if value_at(record, "format", int) != FORMAT or value_at(record, "key", dict) != dict(key):
                return None
            return {str(name): Grid.from_json(grid) for name, grid in value_at(record, "grids", dict).items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def write(self, key: Mapping[str, Any], grids: Grids) -> None:
        """Keep a table; a folder that cannot be written to is only warned about."""
        record = {"format": FORMAT, "key": dict(key), "grids": {name: grid.to_json() for name, grid in grids.items()}}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self._path(key), record)
        except OSError as error:
            warn_caller(f"times are not cached in {self.folder}: {error}", RuntimeWarning)

    def _path(self, key: Mapping[str, Any]) -> Path:
        return self.folder / f"{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]}.json"
