"""Accuracy over cost: a mark for each row of the table, lines along the lineages, the front of the best. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from hybridprune.report.html import svg
from hybridprune.report.marks import MARKERS

LARGE, SMALL = (960, 420), (480, 300)
"""Width and height."""
ARMS = tuple(MARKERS)


@dataclass(frozen=True)
class Point:
    """A row at its cost; ``repeats`` are its single runs, ``parent`` the number of the row that it came from."""

    number: int
    name: str
    arm: str
    x: float
    accuracy: float
    x_std: float | None = None
    accuracy_std: float | None = None
    repeats: tuple[tuple[float, float], ...] = ()
    parent: int | None = None
    hollow: bool = False
    """Deployed: a second mark of the same row."""


def arm_class(arm: str) -> str:
    """The style sheet's class for the colour of an arm."""
    return f"arm{ARMS.index(arm)}"


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no cheaper or equally cheap one is as accurate as, by rising cost."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: (p.x, -p.accuracy)):
        if not kept or point.accuracy > kept[-1].accuracy:
            kept.append(point)
    return kept


def draw(points: Sequence[Point], x_label: str, size: tuple[int, int]) -> Markup:
    """Accuracy over cost; means as marks with their deviations, single runs as dots."""
    width, height = size
    runs = [run for point in points for run in point.repeats]
    low, high = svg.span([p.x for p in points] + [x for x, _ in runs], 0.08, 0.02 * max(p.x for p in points))
    x = svg.Scale(max(0.0, low), high, 64, width - 24)
    edges = [p.accuracy + sign * (p.accuracy_std or 0) for p in points for sign in (-1, 1)]
    low, high = svg.span([*edges, *(y for _, y in runs)], 0.12, 0.01)
    y = svg.Scale(low, high, height - 52, 34)
    parts = [svg.axes(x, y, x_label, "test accuracy", svg.compact, svg.percent)]
    by_number = {point.number: point for point in points if not point.hollow}
    for point in points:
        parent = by_number.get(point.parent or 0)
        if parent is not None:
            parts.append(svg.polyline([(x(p.x), y(p.accuracy)) for p in (parent, point)], "lineage"))
    best = front(points)
    if len(best) > 1:
        parts.append(svg.polyline([(x(p.x), y(p.accuracy)) for p in best], "front"))
    for point in points:
        parts += [_runs(point, x, y), _mark(point, x, y, point in best)]
    return svg.figure(width, height, _label(points, x_label), *parts)


def _runs(point: Point, x: svg.Scale, y: svg.Scale) -> Markup:
    if len(point.repeats) < 2:
        return Markup("")
    dots = [svg.marker("o", x(px), y(py), 2.5, f"{arm_class(point.arm)} run") for px, py in point.repeats]
    return Markup("").join(dots)


def _mark(point: Point, x: svg.Scale, y: svg.Scale, best: bool) -> Markup:
    px, py = x(point.x), y(point.accuracy)
    bars = []
    if point.accuracy_std:
        ends = [y(point.accuracy + sign * point.accuracy_std) for sign in (-1, 1)]
        bars.append(svg.tag("line", x1=px, x2=px, y1=ends[0], y2=ends[1], class_=f"{arm_class(point.arm)} error"))
    if point.x_std:
        ends = [x(point.x + sign * point.x_std) for sign in (-1, 1)]
        bars.append(svg.tag("line", x1=ends[0], x2=ends[1], y1=py, y2=py, class_=f"{arm_class(point.arm)} error"))
    note = ", on the front" if best else ""
    title = f"{point.number}: {point.name}: {svg.percent(point.accuracy)} at {svg.compact(point.x)}{note}"
    filling = "hollow" if point.hollow else "mark"
    mark = svg.marker(MARKERS[point.arm], px, py, 7, f"{arm_class(point.arm)} {filling}", title)
    right = px < x.end - 26
    number = svg.text(px + (12 if right else -12), py - 9, str(point.number), "start" if right else "end", "number")
    return Markup("").join([*bars, mark, number])


def _label(points: Sequence[Point], x_label: str) -> str:
    listed = "; ".join(f"{p.name} {svg.percent(p.accuracy)} at {svg.compact(p.x)}" for p in points)
    return f"Test accuracy over {x_label}. {listed}."


def legend(arms: Sequence[str]) -> Markup:
    """The marks of the arms that occur, and what the lines are."""
    items = []
    for arm in ARMS:
        if arm in arms:
            mark = svg.tag(
                "svg",
                svg.marker(MARKERS[arm], 9, 9, 6, f"{arm_class(arm)} mark"),
                viewBox="0 0 18 18",
                width=18,
                height=18,
                aria_hidden="true",
            )
            items.append(svg.tag("li", mark, Markup.escape(arm)))
    return svg.tag("ul", *items, class_="legend")
