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
    "Place", "Method", "FLOPs %", "Parameters", "Epochs before the cut", "after it", "Accuracy %",
    "ahead of uniform by (95 %)", "level with",
)  # fmt: skip
RESAMPLES = 999
"""Of the intervals between neighbours, of which there are many."""


def show(lines: Sequence[Line], folder: Path) -> None:
    """Print a table for each network and target, and write methods.png and methods.json into ``folder``."""
    keys = dict.fromkeys((*key_of(line), line["target"]) for line in lines if line["arm"] != DENSE)
    tables = {key: ranked(lines, key[:-1], key[-1]) for key in keys}
    for (network, images, base, more, seed, target), rows in tables.items():
        of = "all" if images is None else f"{images:,}"
        print(f"{network} at {target:g}: {base} + {more} epochs of {of} images, seed {seed}\n\n{table(rows)}\n")
    write_json(folder / "methods.json", [without_bits(row) for rows in tables.values() for row in rows])
    draw(list(tables.values()), folder / "methods.png")


def key_of(line: Line) -> tuple[Any, ...]:
    """The key that lines must share to stand in one table."""
    return tuple(line[name] for name in KEY)


def ranked(lines: Sequence[Line], key: tuple[Any, ...], target: float) -> list[Line]:
    """The lines of one table: the dense network, then the best first.

    Each has ``ahead``, its difference from the baseline if there is one, and a cut network has ``place``, from 1, and
    ``level``, the first and the last place around its own of which it cannot be told apart.
    """
    own = [line for line in lines if key_of(line) == key]
    cut = sorted((x for x in own if x["target"] == target and x["arm"] != DENSE), key=lambda x: -x["accuracy"])
    baseline = next((line for line in cut if line["arm"] == BASELINE), None)
    rows = [{**line, "ahead": None} for line in own if line["arm"] == DENSE]
    for index, line in enumerate(cut):
        ahead = None if baseline is None or baseline is line else difference(line, baseline)
        rows.append({**line, "ahead": ahead, "place": index + 1, "level": level(cut, index)})
    return rows


def level(cut: Sequence[Line], index: int) -> tuple[int, int]:
    """The first and the last place of the neighbours, nearest first, whose difference's interval holds 0."""
    alike = [0, 0]
    for side, others in enumerate((cut[:index][::-1], cut[index + 1 :])):
        for other in others:
            found = difference(cut[index], other, RESAMPLES)
            if not found.low <= 0 <= found.high:
                break
            alike[side] += 1
    return index + 1 - alike[0], index + 1 + alike[1]


def difference(line: Line, other: Line, resamples: int = 9999) -> Difference:
    """Accuracy over that of another line, on the same test images."""
    return paired_bootstrap(*(unpack(x["correct"], x["images"]) for x in (line, other)), resamples=resamples)


def table(rows: Sequence[Line]) -> str:
    """Markdown."""
    return Table(COLUMNS, "rl" + "r" * (len(COLUMNS) - 2), [*map(_row, rows)]).markdown()


def _row(row: Line) -> list[str]:
    ahead: Difference | None = row["ahead"]
    shown = "" if ahead is None else f"{100 * ahead.mean:+.2f} [{100 * ahead.low:+.2f}, {100 * ahead.high:+.2f}]"
    first, last = row.get("level", (0, 0))
    cells = (
        row.get("place", ""), row["arm"], f"{100 * row['share']:.2f}", f"{row['params']:,}", row["sparse_epochs"],
        row["tune_epochs"], f"{100 * row['accuracy']:.2f}", shown, "" if first == last else f"{first} to {last}",
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
        axis.set(title=f"{rows[-1]['network']} at {rows[-1]['target']:g}", xlabel="test accuracy %")
        axis.grid(axis="x", alpha=0.3)
    figure.savefig(picture, dpi=110)
