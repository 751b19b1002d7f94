"""Tables and the picture of cascades against one network of the same FLOPs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from benchmarks.converged_tables import reported
from benchmarks.results_log import Line
from hybridprune.report.bootstrap import paired_bootstrap
from hybridprune.tables import Table

REFERENCE, WHOLE = "one network", "one network, cut to the budget"
HEADLINE = {
    REFERENCE: "the best one network",
    "learned": "the best cascade",
    "at random": "the same cascade, its decisions dealt at random",
}
"""The arms of the headline, by their names in it."""


def show(lines: Sequence[Line]) -> None:
    """Print all tables, each below what it is of."""
    for title, table in all_tables(lines):
        print(f"{title}\n\n{table}")


def all_tables(lines: Sequence[Line]) -> Iterator[tuple[str, str]]:
    """The tables, each behind what it is of: all budgets, and one for each budget."""
    yield "headline", headline(lines)
    yield "the best cascade ahead of the best one network", gains(lines)
    yield "all budgets", overview(lines)
    for budget in sorted({line["budget"] for line in lines}):
        yield f"budget {budget}", budget_table([line for line in lines if line["budget"] == budget])


def headline(lines: Sequence[Line]) -> str:
    """The most important arms, as `overview` shows all; the one network is the better one on the images for choices."""
    better = {budget: _better(lines, budget) for budget in {line["budget"] for line in lines}}
    shown = [line for line in lines if line["arm"] not in (REFERENCE, WHOLE) or line["arm"] == better[line["budget"]]]
    own = {**HEADLINE, WHOLE: HEADLINE[REFERENCE]}
    named = [{**line, "arm": own[line["arm"]]} for line in shown if line["arm"] in own]
    return overview(sorted(named, key=lambda line: [*HEADLINE.values()].index(line["arm"])))


def gains(lines: Sequence[Line]) -> str:
    """The lead of the best cascade over the best one network, both as in `headline`, at each budget.

    The means over all seeds of each, image by image, with the 95 % interval of their difference over images.
    """
    body = []
    for budget in sorted({line["budget"] for line in lines}):
        own = [line for line in lines if line["budget"] == budget]
        ours, theirs = ([x for x in own if x["arm"] == arm] for arm in ("learned", _better(lines, budget)))
        if ours and theirs:
            shown = f"{theirs[0]['members'][0]}", _percent([x["report"] for x in theirs])
            body.append((f"{budget:g}", *shown, _percent([x["report"] for x in ours]), _ahead(ours, theirs)))
    head = ("Budget", "Best one network", "Accuracy %", "Best cascade %", "Ahead (95 %)")
    return Table(head, "rlrrr", body).markdown() + "\n"


def _better(lines: Sequence[Line], budget: float) -> str:
    """The arm of one network that its images for choices prefer at a budget."""
    own = [line for line in lines if line["budget"] == budget]
    choices = {arm: [x["choices"] for x in own if x["arm"] == arm] for arm in (REFERENCE, WHOLE)}
    return max(choices, key=lambda arm: np.mean(choices[arm]) if choices[arm] else 0.0)


def overview(lines: Sequence[Line]) -> str:
    """Accuracy by arm and budget: the mean over seeds, and its deviation where there are some."""
    budgets = sorted({line["budget"] for line in lines})
    body = []
    for arm in _arms(lines):
        own = [[x["report"] for x in lines if x["arm"] == arm and x["budget"] == budget] for budget in budgets]
        body.append((arm, *map(_percent, own)))
    head = ("CIFAR-100, accuracy %", *(f"{budget:g} of the FLOPs" for budget in budgets))
    return Table(head, "l" + "r" * len(budgets), body).markdown() + "\n"


def budget_table(lines: Sequence[Line]) -> str:
    """The arms at one budget: members and rates of the first seed, and what each is ahead of one network by.

    The difference is that of the means over seeds, image by image, with its 95 % interval.
    """
    body = []
    base = {line["seed"]: line for line in lines if line["arm"] == REFERENCE}
    for arm in _arms(lines):
        own = [line for line in lines if line["arm"] == arm]
        first = min(own, key=lambda line: line["seed"])
        both = [line for line in own if line["seed"] in base]
        ahead = ""
        if arm != REFERENCE and both:
            ahead = _ahead(both, [base[x["seed"]] for x in both])
        members = " -> ".join(
            f"{name} ({100 * rate:.0f} %)" for name, rate in zip(first["members"], first["rates"], strict=True)
        )
        share = float(np.mean([x["share"] for x in own]))
        body.append((arm, members, f"{share:.3f}", _percent([x["report"] for x in own]), ahead))
    head = ("Arm", "Members, and the images that they run on", "FLOPs", "Accuracy %", f"ahead of {REFERENCE} (95 %)")
    return Table(head, "llrrr", body).markdown() + "\n"


def _ahead(ours: Sequence[Line], theirs: Sequence[Line]) -> str:
    """The difference of the means over seeds, image by image, with its 95 % interval over images."""
    found = paired_bootstrap(*(np.mean([reported(x) for x in of], 0) for of in (ours, theirs)))
    return f"{100 * found.mean:+.2f} [{100 * found.low:+.2f}, {100 * found.high:+.2f}]"


def plot(lines: Sequence[Line], path: Path) -> None:
    """Draw accuracy over expected FLOPs, a line an arm."""
    figure, axes = plt.subplots(figsize=(9, 4))
    for arm in _arms(lines):
        points = []
        for budget in sorted({line["budget"] for line in lines}):
            own = [x for x in lines if x["arm"] == arm and x["budget"] == budget]
            if own:
                points.append((np.mean([x["share"] for x in own]), 100 * np.mean([x["report"] for x in own])))
        axes.plot(*zip(*points, strict=True), "ko-" if arm == REFERENCE else ".-", label=arm)
    axes.set(xlabel="FLOPs of an image on average (share of ResNet-56)", ylabel="CIFAR-100 test accuracy (%)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _arms(lines: Sequence[Line]) -> list[str]:
    return list(dict.fromkeys(line["arm"] for line in lines))


def _percent(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean = f"{100 * float(np.mean(values)):.2f}"
    return mean if len(values) == 1 else f"{mean} +- {100 * np.std(values, ddof=1):.2f} ({len(values)})"
