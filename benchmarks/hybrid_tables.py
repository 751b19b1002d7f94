"""Tables and the plot of the hybrid arms."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from benchmarks.results_log import Line, read_lines, unpack
from hybridprune.data import Dataset
from hybridprune.report.bootstrap import paired_bootstrap
from hybridprune.tables import Table

STATIC = "static at F2"


def show(results: Path, picture: Path) -> None:
    """Print a table for each depth, pair of budgets, epochs and seed, and draw all of them."""
    lines = read_lines(results)
    for key, group in groupby(sorted(lines, key=_key), _key):
        depth, f1, f2, epochs, seed = key
        print(f"ResNet-{depth}, F1 = {f1:.0%}, F2 = {f2:.0%}, {epochs} epochs, seed {seed}\n")
        print(table(list(group)))
    draw(lines, picture)


def _key(line: Line) -> tuple[Any, ...]:
    return line["depth"], line["f1"], line["f2"], " + ".join(map(str, line["epochs"])), line["seed"]


def table(lines: Sequence[Line]) -> str:
    """One row per arm, best first; differences are of the same test images, with 95 % intervals."""
    head = ("Arm", "FLOPs %", "Accuracy %", "over static at F2", "replayed costs", "Always on %", "Distinct routes")
    body = []
    static = next((line for line in lines if line["arm"] == STATIC), None)
    for line in sorted(lines, key=lambda line: -line["accuracy"]):
        over = "" if static is None or line is static else difference(line, "correct", static, "correct")
        replay = difference(line, "correct", line, "replayed_correct") if "replayed_correct" in line else ""
        on = f"{100 * line['always_on']:.2f}" if "always_on" in line else ""
        shares = (f"{100 * line['share']:.2f}", f"{100 * line['accuracy']:.2f}")
        body.append((line["arm"], *shares, over, replay, on, str(line.get("distinct_routes", ""))))
    return Table(head, "lrrrrrr", body).markdown() + "\n"


def difference(a: Line, a_field: str, b: Line, b_field: str) -> str:
    """Points of accuracy of ``a`` over ``b`` with the interval of the paired bootstrap."""
    found = paired_bootstrap(unpack(a[a_field], a["images"]), unpack(b[b_field], b["images"]))
    return f"{100 * found.mean:+.2f} [{100 * found.low:+.2f}, {100 * found.high:+.2f}]"


def draw(lines: Sequence[Line], path: Path) -> None:
    """Accuracy over FLOPs, one marker per arm."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel="expected FLOPs (% of dense), gates counted", ylabel="test accuracy (%)")
    for number, name in enumerate(dict.fromkeys(line["arm"] for line in lines)):
        points = [(100 * line["share"], 100 * line["accuracy"]) for line in lines if line["arm"] == name]
        axes.scatter(*zip(*points, strict=True), marker="os^Dv<>P*X"[number % 10], label=name)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def draw_images(line: Line, dataset: Dataset, path: Path, count: int = 12) -> None:
    """The test images that execute the fewest and the most blocks, one per class, in the order of the test set."""
    executed = unpack(line["decisions"], line["images"] * len(line["rates"])).reshape(line["images"], -1).sum(1)
    figure = Figure(figsize=(count * 0.9, 2.8), layout="constrained")
    axes = figure.subplots(2, count)
    for row, order in enumerate((np.argsort(executed, kind="stable"), np.argsort(-executed, kind="stable"))):
        labels = dataset.test.labels[order].numpy()
        first = np.sort(np.unique(labels, return_index=True)[1])[:count]
        for axis, image in zip(axes[row], order[first], strict=True):
            axis.imshow(dataset.test.pixels(torch.tensor([int(image)]))[0].permute(1, 2, 0).numpy())
            name = dataset.classes[int(dataset.test.labels[image])]
            axis.set_title(f"{name}\n{executed[image]} blocks", fontsize=6)
            axis.axis("off")
    figure.savefig(path, dpi=120)
