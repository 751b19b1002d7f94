"""Accuracy over FLOPs of whole policies, a line each: gates at blocks and cascades in one plot. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from hybridprune.report.html import pareto, svg
from hybridprune.report.marks import MARKERS
from hybridprune.report.sweep import Curve, Split

WIDTH, HEIGHT = pareto.LARGE


@dataclass(frozen=True)
class Policy:
    """The operating points of one run's gates."""

    number: int
    """Of its row."""
    name: str
    cascade: bool
    curve: Curve

    @property
    def kind(self) -> str:
        """The style sheet's class of its line."""
        return "cascade" if self.cascade else "blocks"


def draw(policies: Sequence[Policy], static: Sequence[pareto.Point], split: Split) -> Markup:
    """A line for each policy, numbered as its row is, and marks for the networks without a choice."""
    every = [(flops * 1e-9, accuracy) for policy in policies for flops, accuracy in policy.curve]
    every += [(point.x, point.accuracy) for point in static]
    low, high = svg.span([x for x, _ in every], 0.06, 0.02 * max(x for x, _ in every))
    x = svg.Scale(max(0.0, low), high, 64, WIDTH - 24)
    y = svg.Scale(*svg.span([accuracy for _, accuracy in every], 0.12, 0.01), HEIGHT - 52, 34)
    parts = [svg.axes(x, y, "expected GFLOPs per image, gates counted", f"{split} accuracy", svg.compact, svg.percent)]
    for policy in policies:
        line = [(x(flops * 1e-9), y(accuracy)) for flops, accuracy in policy.curve]
        points = [svg.marker("o", *place, 2.5, f"point {policy.kind}") for place in line]
        end = svg.text(line[-1][0] + 8, line[-1][1] + 4, str(policy.number), "start", "number")
        title = svg.tag("title", f"{policy.number}: {policy.name}")
        parts.append(svg.tag("g", title, svg.polyline(line, f"curve {policy.kind}"), *points, end))
    for point in static:
        title = f"{point.number}: {point.name}: {svg.percent(point.accuracy)} at {svg.compact(point.x)}"
        place = x(point.x), y(point.accuracy)
        parts.append(svg.marker(MARKERS[point.arm], *place, 7, f"{pareto.arm_class(point.arm)} mark", title))
        parts.append(svg.text(place[0] + 12, place[1] - 9, str(point.number), "start", "number"))
    listed = "; ".join(
        f"{policy.number} {policy.name} from {svg.percent(policy.curve[0][1])} at "
        f"{svg.compact(policy.curve[0][0] * 1e-9)} to {svg.percent(policy.curve[-1][1])} at "
        f"{svg.compact(policy.curve[-1][0] * 1e-9)}"
        for policy in policies
    )
    return svg.figure(WIDTH, HEIGHT, f"{split.capitalize()} accuracy over GFLOPs of each policy: {listed}.", *parts)
