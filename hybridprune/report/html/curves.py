"""Training curves: what ``metrics.jsonl`` recorded, one small plot for each quantity."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from hybridprune.report.html import svg

WIDTH, HEIGHT = 420, 260
Line = Mapping[str, Any]


@dataclass(frozen=True)
class Quantity:
    """A quantity that a plot shows: the names of its training and validation figures in a line."""

    heading: str
    train: str | None
    validation: str | None
    format: svg.Format = svg.compact


QUANTITIES = (
    Quantity("accuracy", "train_accuracy", "validation_accuracy", svg.percent),
    Quantity("cross-entropy (nats)", "train_cross_entropy", "validation_loss"),
    Quantity("expected FLOPs, share of the backbone's", "train_flops_share", "validation_flops_share", svg.percent),
    Quantity("learning rate", "lr", None),
    Quantity("reward for skipping everything (nats)", "train_price", None),
)


def draw(runs: Sequence[Sequence[Line]]) -> list[tuple[str, Markup]]:
    """Heading and plot of each quantity that changes, a pair of lines (training, validation) for each run."""
    return [(q.heading, plot) for q in QUANTITIES if (plot := _plot(q, runs)) is not None]


def _series(lines: Sequence[Line], name: str | None) -> list[tuple[float, float]]:
    """Points over epochs; trainings of the same run (phases) stand one behind the other."""
    if name is None:
        return []
    points, offset, phase, last = [], 0.0, None, 0.0
    for line in lines:
        if line.get("phase") != phase:
            phase, offset = line.get("phase"), last
        epoch, value = line.get("epoch"), line.get(name)
        if isinstance(epoch, int):
            last = offset + epoch
            if isinstance(value, int | float) and math.isfinite(value):
                points.append((last, float(value)))
    return points


def _plot(quantity: Quantity, runs: Sequence[Sequence[Line]]) -> Markup | None:
    series = [
        (kind, points)
        for lines in runs
        for kind, name in (("train", quantity.train), ("validation", quantity.validation))
        if (points := _series(lines, name))
    ]
    every = [point for _, points in series for point in points]
    if all(len({value for _, value in points}) < 2 for _, points in series):
        return None
    x = svg.Scale(0, max(epoch for epoch, _ in every), 64, WIDTH - 14)
    low, high = svg.span([value for _, value in every], least=0.01 if quantity.format is svg.percent else 0.0)
    y = svg.Scale(low, high, HEIGHT - 48, 14)
    parts = [svg.axes(x, y, "epoch", "", svg.whole, quantity.format)]
    parts += [svg.polyline([(x(e), y(v)) for e, v in points], f"curve {kind}") for kind, points in series]
    ends = "; ".join(f"{kind} ends at {quantity.format(points[-1][1])}" for kind, points in series)
    return svg.figure(WIDTH, HEIGHT, f"{quantity.heading} over epochs: {ends}.", *parts)
