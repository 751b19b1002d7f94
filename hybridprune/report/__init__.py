"""Tables and plots from finished run folders: ``hybridprune report RESULTS``."""

from __future__ import annotations

from pathlib import Path

from hybridprune.report.formats import render
from hybridprune.report.records import read_runs
from hybridprune.report.rows import Row, build_rows

__all__ = ["Row", "collect", "render"]


def collect(results_dir: str | Path) -> list[Row]:
    """The table's rows from every finished run at any depth; raises `UserError` as `read_runs` does."""
    return build_rows(read_runs(results_dir))
