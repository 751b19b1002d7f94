"""Accuracy over FLOPs: a point for each row, a line along each lineage."""

from __future__ import annotations

import io
from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure

from hybridprune.report.marks import MARKERS
from hybridprune.report.rows import Row


def draw(rows: Sequence[Row]) -> Figure:
    """Draw accuracy (%) over GFLOPs with deviations as error bars; a colour for each network and data set."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel="GFLOPs per image (FLOPs = 2 x MACs)", ylabel="test accuracy (%)")
    by_key = {row.lineage[-1]: row for row in rows}
    parents = {key for row in rows for key in row.lineage[:-1]}
    families = list(dict.fromkeys(row.family for row in rows))
    for row in rows:
        colour = f"C{families.index(row.family)}"
        if row.lineage[-1] not in parents:
            points = [_point(by_key[key]) for key in row.lineage]
            axes.plot(*zip(*points, strict=True), color=colour, alpha=0.4)
        x, y = _point(row)
        x_error, y_error = (row.stats["flops"].std or 0) * 1e-9, (row.stats["accuracy"].std or 0) * 100
        label = f"{row.network}, {row.dataset}: {row.name}"
        label = None if label in axes.get_legend_handles_labels()[1] else label
        axes.errorbar(x, y, y_error, x_error, MARKERS[row.name], color=colour, label=label)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return figure


def encode(figure: Figure, format: str) -> bytes:
    """The figure as ``png`` or ``svg``; the same figure gives the same bytes (no date, no random ids)."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "hybridprune"}):
        figure.savefig(buffer, format=format, dpi=150, metadata={"Date": None} if format == "svg" else None)
    return buffer.getvalue()


def _point(row: Row) -> tuple[float, float]:
    return row.stats["flops"].mean * 1e-9, row.stats["accuracy"].mean * 100
