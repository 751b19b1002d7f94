"""Inline SVG whose colours come from the page's style sheet, so that figures follow dark and light. Pure.

Everything is markup by construction: texts and attributes are escaped where they enter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

Format = Callable[[float], str]


def tag(name: str, *children: Markup | str, **attributes: object) -> Markup:
    """An element; ``class_`` and ``stroke_width`` stand for ``class`` and ``stroke-width``, None for no attribute."""
    listed = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _short(value))
        for key, value in attributes.items()
        if value is not None
    )
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), listed, Markup("").join(children))


def _short(value: object) -> object:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value


def figure(width: float, height: float, label: str, *children: Markup) -> Markup:
    """A whole drawing; ``label`` is what a screen reader says of it."""
    return tag(
        "svg", *children, viewBox=f"0 0 {width:g} {height:g}", width=width, height=height, role="img", aria_label=label
    )


def text(x: float, y: float, content: str, anchor: str = "middle", class_: str | None = None) -> Markup:
    """One line of text; ``anchor`` is start, middle or end."""
    return tag("text", content, x=x, y=y, text_anchor=anchor, class_=class_)


@dataclass(frozen=True)
class Scale:
    """A linear map of data in [low, high] to pixels in [start, end]."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        """About ``count`` round numbers in the domain."""
        rough = (self.high - self.low) / count
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def span(values: Sequence[float], margin: float = 0.08, least: float = 0.0) -> tuple[float, float]:
    """An interval around ``values`` with a margin on both sides, never narrower than ``least`` nor empty."""
    low, high = min(values), max(values)
    width = max(high - low, least, 1e-9 * max(abs(low), abs(high)), 1e-12)
    middle = (low + high) / 2
    return middle - width * (0.5 + margin), middle + width * (0.5 + margin)


def axes(x: Scale, y: Scale, x_label: str, y_label: str, x_format: Format | None, y_format: Format) -> Markup:
    """Grid, tick labels and axis labels of a plot; ``y.start`` is its bottom. Without a format, x has no ticks."""
    parts = []
    for value in y.ticks():
        parts.append(tag("line", x1=x.start, x2=x.end, y1=y(value), y2=y(value), class_="grid"))
        parts.append(text(x.start - 8, y(value) + 4, y_format(value), "end", "tick"))
    for value, shown in [(value, x_format(value)) for value in x.ticks()] if x_format else []:
        parts.append(tag("line", x1=x(value), x2=x(value), y1=y.start, y2=y.start + 5, class_="axis"))
        parts.append(text(x(value), y.start + 19, shown, "middle", "tick"))
    parts.append(tag("line", x1=x.start, x2=x.end, y1=y.start, y2=y.start, class_="axis"))
    parts.append(text((x.start + x.end) / 2, y.start + 38, x_label, "middle", "label"))
    parts.append(text(x.start, y.end - 10, y_label, "start", "label"))
    return Markup("").join(parts)


def polyline(points: Sequence[tuple[float, float]], class_: str) -> Markup:
    """A line through points given in pixels."""
    return tag("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points), class_=class_)


def marker(shape: str, x: float, y: float, size: float, class_: str, title: str = "") -> Markup:
    """A mark of matplotlib's name: ``o`` circle, ``s`` square, ``^`` triangle, ``D`` diamond."""
    corners = {
        "s": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
        "^": [(0, -1.1), (1.05, 0.8), (-1.05, 0.8)],
        "D": [(0, -1.2), (1.2, 0), (0, 1.2), (-1.2, 0)],
    }
    inside = [tag("title", title)] if title else []
    if shape == "o":
        return tag("circle", *inside, cx=x, cy=y, r=size, class_=class_)
    points = " ".join(f"{x + size * dx:.1f},{y + size * dy:.1f}" for dx, dy in corners[shape])
    return tag("polygon", *inside, points=points, class_=class_)


def clipped(name: str, most: int = 22) -> str:
    """The end of a name that is too long to stand in a margin."""
    return name if len(name) <= most else "…" + name[1 - most :]


def compact(value: float) -> str:
    """Up to four significant digits, as ticks need them."""
    return f"{value:.4g}"


def whole(value: float) -> str:
    """A tick of what is counted: nothing between whole numbers."""
    return f"{round(value):,}" if abs(value - round(value)) < 1e-9 else ""


def percent(value: float) -> str:
    """A fraction in percent, with no more digits than it needs."""
    return f"{100 * value:.4g}%"
