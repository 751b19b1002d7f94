"""Tables and the plot of the static arms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.results_log import Line, read_lines, unpack
from hybridprune.report.bootstrap import paired_bootstrap
from hybridprune.tables import Table

OURS = "fisher-tucker"


def show(results: Path, study: Path, picture: Path) -> None:
    """Print the tables of all that was measured and draw the picture."""
    lines = read_lines(results)
    dense = next((line for line in lines if line["arm"] == "dense"), None)
    if dense is not None:
        print(f"dense: {dense['after_cut']:.2%} on {dense['images']:,} test images\n")
        print(arms_table(lines, dense))
        draw(lines, dense, picture)
    if study.is_file():
        print(study_table(read_lines(study)))


def arms_table(lines: Sequence[Line], dense: Line) -> str:
    """One row per arm and budget: accuracy after the cut and after fine-tuning, and what the default is ahead."""
    head = (
        "Arm", "FLOPs %", "Parameters", "After the cut %", "of dense", "Fine-tuned %", "fisher-tucker ahead by (95 %)",
    )  # fmt: skip
    body = []
    ordered = sorted(
        (x for x in lines if x["arm"] != "dense"), key=lambda x: (-x["budget"], -x.get("tuned", x["after_cut"]))
    )
    for line in ordered:
        ours = _same(lines, line)
        tuned = f"{line['tuned']:.2%}"[:-1] if "tuned" in line else ""
        size = (f"{100 * line['share']:.2f}", f"{line['params']:,}")
        after = (f"{100 * line['after_cut']:.2f}", f"{line['after_cut'] / dense['after_cut']:.3f}")
        body.append((line["arm"], *size, *after, tuned, _ahead(ours, line)))
    return Table(head, "lrrrrrr", body).markdown() + "\n"


def _same(lines: Sequence[Line], line: Line) -> Line | None:
    keys = ("budget", "seed", "epochs", "precision")
    return next((x for x in lines if x["arm"] == OURS and all(x.get(k) == line.get(k) for k in keys)), None)


def _ahead(ours: Line | None, line: Line) -> str:
    if ours is None or ours is line:
        return ""
    field = "tuned" if "tuned" in line and "tuned" in ours else "after_cut"
    a, b = (unpack(x[f"{field}_correct"], x["images"]) for x in (ours, line))
    difference = paired_bootstrap(a, b)
    mark = "" if difference.beats else " (not beaten)"
    return f"{100 * difference.mean:+.2f} [{100 * difference.low:+.2f}, {100 * difference.high:+.2f}]{mark}"


def study_table(lines: Sequence[Line]) -> str:
    """One row per variant, one column per budget."""
    budgets = sorted({line["budget"] for line in lines}, reverse=True)
    names = list(dict.fromkeys(line["arm"] for line in lines))
    header = ["Variant", *(f"{budget:.0%} of the FLOPs" for budget in budgets), "seconds to score", "to apply"]
    body = []
    for name in names:
        found: dict[float, Any] = {line["budget"]: line for line in lines if line["arm"] == name}
        cells = [f"{100 * found[b]['after_cut']:.2f}" if b in found else "" for b in budgets]
        seconds = [line["seconds"] for line in found.values()]
        times = [f"{np.mean([s[part] for s in seconds]):.0f}" for part in ("score", "apply")]
        body.append((name, *cells, *times))
    return Table(header, "l" + "r" * (len(header) - 1), body).markdown() + "\n"


def draw(lines: Sequence[Line], dense: Line, picture: Path) -> None:
    """Accuracy over FLOPs, right after the cut and fine-tuned."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, column, title in zip(
        axes, ("after_cut", "tuned"), ("right after the cut", "after the same fine-tuning"), strict=True
    ):
        for name in dict.fromkeys(line["arm"] for line in lines if line["arm"] != "dense"):
            points = sorted((x["share"], x[column]) for x in lines if x["arm"] == name and column in x)
            if points:
                style = {"linewidth": 2.5} if name == OURS else {"linewidth": 1.0}
                axis.plot(*zip(*points, strict=True), marker="o", label=name, **style)
        axis.axhline(dense["after_cut"], color="black", linestyle="--", linewidth=0.8, label="dense")
        axis.set(title=title, xlabel="share of the dense FLOPs")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("test accuracy")
    axes[1].legend(fontsize=8, loc="lower right")
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=120)
