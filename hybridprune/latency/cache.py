"""Tables of times on disk: a file a layer, found by all that a time depends on, and used nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridprune.data.cache import default_cache_dir
from hybridprune.latency.table import Grid, Grids
from hybridprune.store.record_cache import RecordCache

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
            record = self._records.read(key)
            return None if record is None else {name: Grid.from_json(grid) for name, grid in record.items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            return None

    def write(self, key: Mapping[str, Any], grids: Grids) -> None:
        """Keep a table; a folder that cannot be written to is only warned about."""
        self._records.write(key, {name: grid.to_json() for name, grid in grids.items()})

    @property
    def _records(self) -> RecordCache:
        return RecordCache(self.folder, FORMAT, "grids", "times")
