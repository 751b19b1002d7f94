"""Tables of the networks that were trained to the end by others."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np

from benchmarks.results_log import Line, unpack
from hybridprune.report.bootstrap import paired_bootstrap
from hybridprune.tables import Table

DENSE, OURS = "dense", "fisher-tucker, separable"
CLOSE = 0.02
"""Difference of the shares of FLOPs up to which a published network stands beside a cut one."""


def show(lines: Sequence[Line]) -> None:
    """Print the published networks, and a table for each of them that was cut and each share of its FLOPs."""
    dense = [line for line in lines if line["method"] == DENSE]
    print(published_table(dense))
    cut = sorted((line for line in lines if line["method"] != DENSE), key=_cell)
    for (network, budget, target), group in groupby(cut, _cell):
        rows = list(group)
        parent = next((line for line in dense if line["network"] == network), None)
        print(f"{network} cut to {target:.0%} of its {budget}\n")
        print(cell_table(rows, parent, [line for line in dense if line["network"] != network]))


def _cell(line: Line) -> tuple[str, str, float]:
    return line["network"], "parameters" if line.get("budget") else "FLOPs", line["target"]


def published_table(dense: Sequence[Line]) -> str:
    """Accuracy and cost of the networks as their authors trained them."""
    rows = [
        (x["network"], f"{x['macs'] / 1e6:.1f}", f"{x['params']:,}", _percent(x["report"]), _percent(whole(x)))
        for x in sorted(dense, key=lambda line: line["macs"])
    ]
    head = ("Network", "MMACs", "Parameters", "Reported test images %", "All test images %")
    return Table(head, "lrrrr", rows).markdown() + "\n"


def cell_table(rows: Sequence[Line], parent: Line | None, others: Sequence[Line]) -> str:
    """One row per method, a column per number of epochs: mean over seeds (with n and deviation where there are some).

    The last column is what fisher-tucker is ahead by after the most epochs that both have, on the same reported images
    and with the same seed. Published networks of the same FLOPs follow, and what it is ahead of them by.
    """
    runs = sorted({(line["epochs"], line["recipe"]) for line in rows})
    longest = {method: max(r["epochs"] for r in rows if r["method"] == method) for method in _methods(rows)}
    body = []
    for method in sorted(longest, key=lambda name: -_best(rows, name)):
        own = [line for line in rows if line["method"] == method]
        cells = [_cell_text([x["report"] for x in own if (x["epochs"], x["recipe"]) == run]) for run in runs]
        body.append((method, f"{own[0]['share']:.3f}", f"{own[0]['params_share']:.3f}", *cells, _ahead(rows, own)))
    if parent is not None:
        for other in others:
            share, of_params = (other[kind] / parent[kind] for kind in ("macs", "params"))
            if abs((of_params if rows[0].get("budget") else share) - rows[0]["target"]) <= CLOSE:
                params = f"{of_params:.3f}"
                blank = [""] * len(runs)
                name = f"{other['network']}, published: {_percent(other['report'])}"
                body.append((name, f"{share:.3f}", params, *blank, _ahead_of_published(rows, other)))
    titles = [f"{epochs} epochs {recipe}".strip() if epochs else "After the cut" for epochs, recipe in runs]
    head = ("Method", "FLOPs", "Parameters", *(f"{title} %" for title in titles), f"{OURS} ahead by (95 %)")
    return Table(head, "lrr" + "r" * len(runs) + "r", body).markdown() + "\n"


def _methods(rows: Sequence[Line]) -> list[str]:
    return list(dict.fromkeys(line["method"] for line in rows))


def _best(rows: Sequence[Line], method: str) -> float:
    """Accuracy after the most epochs of all."""
    return max((line["epochs"], line["report"]) for line in rows if line["method"] == method)[1]


def _ahead(rows: Sequence[Line], own: Sequence[Line]) -> str:
    if own[0]["method"] == OURS:
        return ""
    keys = ("epochs", "recipe", "seed")
    pairs = [
        (ours, line)
        for line in own
        for ours in rows
        if ours["method"] == OURS and all(ours[key] == line[key] for key in keys)
    ]
    if not pairs:
        return ""
    return _difference(*max(pairs, key=lambda pair: (pair[1]["epochs"], -pair[1]["seed"])))


def _ahead_of_published(rows: Sequence[Line], other: Line) -> str:
    ours = [row for row in rows if row["method"] == OURS]
    return _difference(max(ours, key=lambda row: (row["epochs"], -row["seed"])), other) if ours else ""


def _difference(ours: Line, other: Line) -> str:
    difference = paired_bootstrap(reported(ours), reported(other))
    mark = "" if difference.beats else " (not beaten)"
    return f"{100 * difference.mean:+.2f} [{100 * difference.low:+.2f}, {100 * difference.high:+.2f}]{mark}"


def whole(line: Line) -> float:
    """Accuracy on all test images."""
    counts = line["images"]
    return sum(n * line[part] for n, part in zip(counts, ("calibration", "report"), strict=True)) / sum(counts)


def reported(line: Line) -> np.ndarray:
    """The reported test images that were right, ``[M]`` bool."""
    return unpack(line["report_correct"], line["images"][1])


def _cell_text(values: Sequence[Any]) -> str:
    if len(values) < 2:
        return _percent(values[0]) if values else ""
    return f"{_percent(float(np.mean(values)))} +- {100 * np.std(values, ddof=1):.2f} ({len(values)})"


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"
