"""The table, the plot and the JSON of all methods side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.results_log import Line, unpack
from hybridprune.report.bootstrap import Difference, paired_bootstrap
from hybridprune.store.files import write_json
from hybridprune.tables import Table

DENSE = "dense"
BASELINE = "uniform"
"""What every method has to beat."""
KEY = ("network", "images_trained", "base", "more", "seed")
COLUMNS = (
    "Method", "FLOPs %", "Parameters", "Epochs before the cut", "after it", "Accuracy %", "ahead of uniform by (95 %)",
)  # fmt: skip


def show(lines: Sequence[Line], folder: Path) -> None:
    """Print a table for each network, and write methods.png and methods.json into ``folder``."""
    tables = {key: ranked(lines, key) for key in dict.fromkeys(map(key_of, lines))}
    for (network, images, base, more, seed), rows in tables.items():
        print(f"{network}: {base} + {more} epochs of {images:,} images, seed {seed}\n\n{table(rows)}\n")
    write_json(folder / "methods.json", [without_bits(row) for rows in tables.values() for row in rows])
    draw(list(tables.values()), folder / "methods.png")


def key_of(line: Line) -> tuple[Any, ...]:
    """The key that lines must share to stand in one table."""
    return tuple(line[name] for name in KEY)


def ranked(lines: Sequence[Line], key: tuple[Any, ...]) -> list[Line]:
    """The lines of one table: the dense network, then the best first; each with ``ahead`` if there is a baseline."""
    own = [line for line in lines if key_of(line) == key]
    baselines = {line["target"]: line for line in own if line["arm"] == BASELINE}
    rows = []
    for line in sorted(own, key=lambda line: (line["arm"] != DENSE, -line["target"], -line["accuracy"])):
        against = baselines.get(line["target"])
        ahead = None if against is None or against is line else difference(line, against)
        rows.append({**line, "ahead": ahead})
    return rows


def difference(line: Line, other: Line) -> Difference:
    """Accuracy over that of another line, on the same test images."""
    return paired_bootstrap(*(unpack(x["correct"], x["images"]) for x in (line, other)))


def table(rows: Sequence[Line]) -> str:
    """Markdown."""
    return Table(COLUMNS, "l" + "r" * (len(COLUMNS) - 1), [*map(_row, rows)]).markdown()


def _row(row: Line) -> list[str]:
    ahead: Difference | None = row["ahead"]
    shown = "" if ahead is None else f"{100 * ahead.mean:+.2f} [{100 * ahead.low:+.2f}, {100 * ahead.high:+.2f}]"
    cells = (
        row["arm"], f"{100 * row['share']:.2f}", f"{row['params']:,}", row["sparse_epochs"], row["tune_epochs"],
        f"{100 * row['accuracy']:.2f}", shown,
    )  # fmt: skip
    return [*map(str, cells)]


def without_bits(row: Line) -> dict[str, Any]:
    """A row as it is published: no bit for each test image."""
    ahead: Difference | None = row["ahead"]
    return {k: v for k, v in row.items() if k != "correct"} | {"ahead": None if ahead is None else ahead._asdict()}


def draw(tables: Sequence[Sequence[Line]], picture: Path) -> None:
    """One panel a table, one bar a method."""
    figure = Figure(figsize=(6.0 * max(1, len(tables)), 6.5), layout="constrained")
    for place, rows in enumerate(tables, start=1):
        axis = figure.add_subplot(1, len(tables), place)
        bars = [row for row in rows if row["arm"] != DENSE][::-1]
        axis.barh([row["arm"] for row in bars], [100 * row["accuracy"] for row in bars])
        for row in rows:
            if row["arm"] == DENSE:
                axis.axvline(100 * row["accuracy"], color="black", linestyle="--", linewidth=0.8, label=DENSE)
                axis.legend(loc="lower right")
        axis.set(title=rows[0]["network"], xlabel="test accuracy %")
        axis.grid(axis="x", alpha=0.3)
    figure.savefig(picture, dpi=110)
