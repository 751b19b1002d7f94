"""The page: table, plots and details of every row, put together by a template that escapes whatever it is given."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from hybridprune.errors import UserError
from hybridprune.report.formats import table
from hybridprune.report.html import operating_points, pareto
from hybridprune.report.html.details import Detail, Options, detail, heading
from hybridprune.report.html.operating_points import Policy
from hybridprune.report.html.pareto import Point
from hybridprune.report.rows import Key, Row, figures
from hybridprune.report.speed import Speed, average, deployed_name
from hybridprune.report.sweep import Split, Sweep, read_sweep
from hybridprune.version import __version__

MOST_CARDS = 6
STAGE_OF = {"dense": "sp", "prune": "prune", "rl": "rl"}
"""Whose accuracy a measured network has; that of stage 1 is read with every block executed."""
STATIC = ("without pruning", "static only")
Numbered = Sequence[tuple[int, Row]]


@dataclass(frozen=True)
class Card:
    """A row in a few words: its accuracy, its cost beside the dense network's, what it gained and lost."""

    number: int
    heading: str
    arm: str
    accuracy: float
    std: float | None
    dense_share: float
    points: float | None
    """Accuracy over that of the unpruned ancestor, in percentage points."""


@dataclass(frozen=True)
class Curves:
    """Operating points of the rows' gates, on the images that all of them were measured on."""

    plot: Markup | None
    kinds: list[str]
    """Of the lines that occur, as the style sheet names them."""
    split: Split
    notes: list[str]
    """What could not be read."""


@dataclass(frozen=True)
class Family:
    """The rows of one network and data set: what may be compared."""

    heading: str
    cards: list[Card]
    legend: Markup
    plot: Markup
    """Accuracy over FLOPs."""
    curves: Curves | None
    """Of whole policies; None where no run was swept."""
    latency: list[tuple[str, Markup]]
    """Accuracy over latency: form, batch and place in words, and the plot."""
    speeds: list[tuple[int, Speed]]
    """With the number of the row."""
    details: list[Detail]


def render_page(results: Path, rows: Sequence[Row], options: Options) -> str:
    """The whole page as HTML."""
    numbered = list(enumerate(rows, start=1))
    families = [_family(list(group), options) for _, group in groupby(numbered, key=lambda pair: pair[1].family)]
    environment = Environment(
        loader=PackageLoader("hybridprune.report.html"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        results=str(results),
        version=__version__,
        table=table(rows),
        families=families,
        runs=sum(len(row.runs) for row in rows),
        rows=len(rows),
        arm_class=pareto.arm_class,
    )


def _family(rows: Numbered, options: Options) -> Family:
    first = rows[0][1]
    speeds = [(number, speed) for number, row in rows for speed in average(run.bench for run in row.runs)]
    latency = []
    for setting in sorted({speed.setting for _, speed in speeds}):
        points = list(_latency_points(rows, [pair for pair in speeds if pair[1].setting == setting]))
        if len(points) > 1:
            batch, form, place = setting
            latency.append(
                (
                    f"{form}, batch {batch}, {place}",
                    pareto.draw(points, f"median ms per batch of {batch}", pareto.SMALL),
                )
            )
    return Family(
        heading=f"{first.network} on {first.dataset}",
        cards=_cards(rows),
        legend=pareto.legend([row.name for _, row in rows]),
        plot=pareto.draw(list(_flops_points(rows)), "GFLOPs per image (FLOPs = 2 x MACs)", pareto.LARGE),
        curves=_curves(rows),
        latency=latency,
        speeds=speeds,
        details=[detail(number, row, options) for number, row in rows],
    )


def _curves(rows: Numbered) -> Curves | None:
    """Each swept run's curve: on test images if all were measured there, beside the static networks; or validation."""
    found: list[tuple[int, Row, Sweep]] = []
    notes: list[str] = []
    for number, row in rows:
        for run in row.runs:
            try:
                sweep = read_sweep(run.path.parent)
            except UserError as error:
                notes.append(f"Row {number}: {error}.")
                continue
            if sweep is not None:
                found.append((number, row, sweep))
    if not found:
        return Curves(None, [], "validation", notes) if notes else None
    tested = [Policy(number, heading(row), row.cascade, sweep.test) for number, row, sweep in found if sweep.test]
    if len(tested) == len(found):
        split, policies = "test", tested
        static = [point for point in _flops_points(rows) if point.arm in STATIC]
    else:
        split, static = "validation", []
        policies = [Policy(number, heading(row), row.cascade, sweep.validation) for number, row, sweep in found]
    plot = operating_points.draw(policies, static, split)
    return Curves(plot, sorted({policy.kind for policy in policies}), split, notes)


def _cards(rows: Numbered) -> list[Card]:
    """None where there are too many to take in; the table has them all."""
    if len(rows) > MOST_CARDS:
        return []
    by_key = {row.lineage[-1]: row for _, row in rows}
    return [_card(number, row, by_key.get(row.lineage[0])) for number, row in rows]


def _card(number: int, row: Row, eldest: Row | None) -> Card:
    accuracy = row.stats["accuracy"]
    dense = eldest if eldest is not None and eldest is not row and eldest.name == "without pruning" else None
    return Card(
        number=number,
        heading=heading(row),
        arm=row.name,
        accuracy=accuracy.mean,
        std=accuracy.std,
        dense_share=row.stats["dense_share"].mean,
        points=None if dense is None else 100 * (accuracy.mean - dense.stats["accuracy"].mean),
    )


def _parents(rows: Numbered) -> dict[int, int]:
    """Number of a row -> number of the row that it came from."""
    number_of = {row.lineage[-1]: number for number, row in rows}
    return {number: number_of[row.lineage[-2]] for number, row in rows if len(row.lineage) > 1}


def _flops_points(rows: Numbered) -> Iterable[Point]:
    parents = _parents(rows)
    for number, row in rows:
        each = [figures(run) for run in row.runs]
        flops, accuracy = row.stats["flops"], row.stats["accuracy"]
        yield Point(
            number=number,
            name=heading(row),
            arm=row.name,
            x=flops.mean * 1e-9,
            accuracy=accuracy.mean,
            x_std=None if flops.std is None else flops.std * 1e-9,
            accuracy_std=accuracy.std,
            repeats=tuple((one["flops"] * 1e-9, one["accuracy"]) for one in each),
            parent=parents.get(number),
        )


def _latency_points(rows: Numbered, speeds: Sequence[tuple[int, Speed]]) -> Iterable[Point]:
    """Each row that was measured, with the mean of its latencies, and each row as deployed."""
    by_number, parents = dict(rows), _parents(rows)
    number_of = {row.lineage[-1]: number for number, row in rows}
    latencies: dict[tuple[int, bool], list[float]] = defaultdict(list)
    for row_number, speed in speeds:
        lineage = by_number[row_number].lineage
        deployed = speed.network == deployed_name(lineage[-1][0])
        meant = row_number if deployed else _meant(lineage, speed.network, number_of)
        if meant is not None:
            latencies[meant, deployed].append(speed.median_ms.mean)
    for (number, deployed), values in sorted(latencies.items()):
        row = by_number[number]
        yield Point(
            number=number,
            name=heading(row) + (", deployed" if deployed else ""),
            arm=row.name,
            x=statistics.mean(values),
            accuracy=row.stats["accuracy"].mean,
            accuracy_std=row.stats["accuracy"].std,
            parent=None if deployed else parents.get(number),
            hollow=deployed,
        )


def _meant(lineage: Sequence[Key], network: str, number_of: dict[Key, int]) -> int | None:
    """The row of the ancestor (or the run itself) that a measurement's ``network`` names; None if it is not known."""
    stage = STAGE_OF.get(network)
    return next((number_of.get(key) for key in reversed(lineage) if key[0] == stage), None)
