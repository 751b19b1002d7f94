"""Tables of the networks that were trained to the end by others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from benchmarks.results_log import Line, unpack
from hybridprune.report.bootstrap import paired_bootstrap
from hybridprune.tables import Table

DENSE, OURS = "dense", "fisher-tucker, separable"
DEFAULT = "default"
"""The recipe that the product has; others were tried beside it."""
CLOSE = 0.02
"""Difference of the shares of FLOPs up to which a published network stands beside a cut one."""
LONG = 10
"""Epochs behind the cut in the headline."""
HEADLINE = (
    (OURS, "resnet56", 0.55, "ResNet-56 to 0.55: `fisher-tucker`"),
    (OURS, "resnet32", 0.59, "ResNet-32 to 0.59: `fisher-tucker`"),
    (OURS, "resnet56", 0.32, "ResNet-56 to 0.32: `fisher-tucker`"),
    ("bn-scale", "resnet56", 0.32, "the same by `bn-scale`"),
    ("torch-pruning group-l2", "resnet56", 0.32, "the same by torch-pruning (group-l2)"),
)


def show(lines: Sequence[Line]) -> None:
    """Print all tables, each below what it is of."""
    for title, table in all_tables(lines):
        print(f"{title}\n\n{table}")


def all_tables(lines: Sequence[Line]) -> Iterator[tuple[str, str]]:
    """The tables, each behind what it is of.

    Of the headline, of the published networks, of each of them that was cut and each share of its cost, and of the
    recipes.
    """
    dense = [line for line in lines if line["method"] == DENSE]
    yield "headline", headline(lines)
    yield "published networks", published_table(dense)
    cut = sorted((line for line in lines if line["method"] != DENSE and line["recipe"] in ("", DEFAULT)), key=_cell)
    for (network, budget, target), group in groupby(cut, _cell):
        rows = list(group)
        parent = next((line for line in dense if line["network"] == network), None)
        others = [line for line in dense if line["network"] != network]
        yield f"{network} cut to {target:.0%} of its {budget}", cell_table(rows, parent, others)
    yield "recipes", recipe_table(lines)


def headline(lines: Sequence[Line]) -> str:
    """The published networks and the most important cuts, by their cost."""
    rows = [
        (x["macs"] / 1e6, f"{_named(x['network'])}, as published", _percent(x["report"]), "")
        for x in lines
        if x["method"] == DENSE
    ]
    for method, network, target, name in HEADLINE:
        own = [x for x in lines if (x["method"], x["network"], x["target"]) == (method, network, target)]
        own = [x for x in own if not x.get("budget")]
        short = [x["report"] for x in own if x["epochs"] == 0]
        long = [x["report"] for x in own if x["epochs"] == LONG and x["recipe"] == DEFAULT]
        if own:
            rows.append((own[0]["macs"] / 1e6, name, _cell_text(short), _cell_text(long)))
    rows.sort(key=lambda row: -round(row[0], 1))
    head = ("CIFAR-100", "MMACs", "Right after the cut %", "Ten epochs later %")
    return Table(head, "lrrr", [(name, f"{macs:.1f}", *rest) for macs, name, *rest in rows]).markdown() + "\n"


def recipe_table(lines: Sequence[Line]) -> str:
    """Accuracy on the images for choices, by learning rate, where another than the default recipe was tried."""
    tried = [line for line in lines if line["recipe"] and line["epochs"] < LONG]
    others = [line for line in tried if line["recipe"] != DEFAULT]
    runs = sorted({(line["network"], line["target"], line["method"], line["epochs"]) for line in others})
    rates = sorted({line["recipe_options"]["lr"] for line in tried})
    body = []
    for run in runs:
        own = [x for x in tried if (x["network"], x["target"], x["method"], x["epochs"]) == run and x["seed"] == 0]
        cells = [_cell_text([x["calibration"] for x in own if x["recipe_options"]["lr"] == rate]) for rate in rates]
        body.append((f"{_named(run[0])} at {run[1]}", run[2], str(run[3]), *cells))
    head = ("Network", "Method", "Epochs", *(f"rate {rate:g}" for rate in rates))
    return Table(head, "llr" + "r" * len(rates), body).markdown() + "\n"


def _named(network: str) -> str:
    return network.replace("resnet", "ResNet-")


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
    and with the same seeds, whose mean is taken for each image. Published networks of the same FLOPs follow, and what
    it is ahead of them by.
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
    titles = [f"{epochs} epoch{'s' * (epochs > 1)}" if epochs else "After the cut" for epochs, _ in runs]
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
    ours = {(x["epochs"], x["recipe"], x["seed"]): x for x in rows if x["method"] == OURS}
    theirs = {(x["epochs"], x["recipe"], x["seed"]): x for x in own}
    both = ours.keys() & theirs.keys()
    last = [key for key in both if key[0] == max(both)[0]]
    return _difference([ours[key] for key in last], [theirs[key] for key in last]) if both else ""


def _ahead_of_published(rows: Sequence[Line], other: Line) -> str:
    ours = [row for row in rows if row["method"] == OURS]
    last = [row for row in ours if row["epochs"] == max(x["epochs"] for x in ours)]
    return _difference(last, [other]) if last else ""


def _difference(ours: Sequence[Line], other: Sequence[Line]) -> str:
    """The difference of the means over seeds, image by image."""
    mean_ours, mean_other = (np.mean([reported(x) for x in lines], 0) for lines in (ours, other))
    difference = paired_bootstrap(mean_ours, mean_other)
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
