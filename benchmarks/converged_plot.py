"""The picture of the networks that were trained to the end by others, cut and as they were published."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from benchmarks.converged_tables import DENSE, OURS
from benchmarks.results_log import Line

PEERS = {"bn-scale": "bn-scale", "torch-pruning group-l2": "torch-pruning (group-l2)"}
"""What stands beside fisher-tucker, the best of each kind, and its name in the legend."""
EPOCHS = 10


def points(lines: Sequence[Line], method: str, epochs: int) -> list[tuple[float, float]]:
    """``(MMACs, accuracy %)`` of a method's networks after so many epochs of the recipe ``default``, cheapest first.

    The mean over seeds.
    """
    found: dict[tuple[str, float], list[Line]] = {}
    for line in lines:
        own = line["method"] == method and line["epochs"] == epochs and line["recipe"] in ("", "default")
        if own and not line.get("budget"):
            found.setdefault((line["network"], line["target"]), []).append(line)
    means = [(rows[0]["macs"] / 1e6, 100 * float(np.mean([x["report"] for x in rows]))) for rows in found.values()]
    return sorted(means)


def plot(lines: Sequence[Line], path: Path, least: float = 60.0) -> None:
    """Draw accuracy over MACs, from ``least`` % on."""
    figure, axes = plt.subplots(figsize=(7, 4))
    published = points(lines, DENSE, 0)
    axes.plot(*zip(*published, strict=True), "k.-", label="trained from scratch by their authors")
    names = (f"ResNet-{depth}" for depth in (20, 32, 44, 56))
    for (macs, accuracy), name in zip(published, names, strict=True):
        axes.annotate(name, (macs, accuracy), xytext=(4, -12), textcoords="offset points", fontsize=8)
    axes.plot(*zip(*points(lines, OURS, 0), strict=True), "C0o", mfc="none", label="fisher-tucker, right after the cut")
    for method, name, marker in (
        (OURS, "fisher-tucker", "C0o"),
        *((method, name, f"C{number}s") for number, (method, name) in enumerate(PEERS.items(), start=1)),
    ):
        if tuned := points(lines, method, EPOCHS):
            axes.plot(*zip(*tuned, strict=True), marker, label=f"{name}, {EPOCHS} epochs later")
    axes.set(xlabel="MACs of an image (millions)", ylabel="CIFAR-100 test accuracy (%)", ylim=(least, None))
    axes.margins(x=0.14)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)
