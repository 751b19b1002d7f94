"""The share of a cascade's images that go on, class by class and by the confidence of its first member."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from markupsafe import Markup
from torch import Tensor

from hybridprune.report.html import svg
from hybridprune.report.html.routed_images import RoutedImages

TENTHS = 10
FEW = 10
"""Classes that are drawn at each end, where there are more than twice as many."""
WIDTH, ROW = 760, 22
HEIGHT, SLOT = 300, 70
Z = 1.96
"""Standard deviations of a 95 % interval."""


@dataclass(frozen=True)
class ClassRates:
    """The test images of one class."""

    name: str
    images: int
    rates: tuple[float, ...]
    """The shares of them that run member 2, ..., K; falling."""


@dataclass(frozen=True)
class Tenth:
    """A tenth of the test images by the margin of the first member's answer."""

    low: float
    """The smallest margin."""
    high: float
    images: int
    rates: tuple[float, ...]
    """The shares of them that run member 2, ..., K; falling."""
    first: float
    """Accuracy of the first member alone."""
    accuracy: float
    """Accuracy of the cascade."""


@dataclass(frozen=True)
class Escalation:
    """Both readings of a cascade's decisions, and their figures."""

    members: int
    classes: list[ClassRates]
    classes_figure: Markup
    spread: float
    """The standard deviation over classes of the share that goes on."""
    chance: float
    """What it would be if all classes went on alike."""
    tenths: list[Tenth]
    tenths_figure: Markup


def escalation(images: RoutedImages) -> Escalation | None:
    """The rates of routed images, in which no image is run again; None if the network is no cascade."""
    if images.first is None or images.margins is None:
        return None
    routed = images.routed
    classes = by_class(routed.decisions, routed.labels, images.spec.class_names)
    first = images.first.argmax(1)
    tenths = by_confidence(routed.decisions, routed.labels, routed.predictions, first, images.margins)
    return Escalation(
        routed.decisions.shape[1] + 1, classes, draw_classes(classes), *spread(classes), tenths, draw_tenths(tenths)
    )


def by_class(decisions: Tensor, labels: Tensor, names: Sequence[str]) -> list[ClassRates]:
    """Classes that occur, those first of which most images go on; ``decisions [M, K - 1]``, ``labels [M]``."""
    present: list[int] = labels.unique().tolist()
    found = [
        ClassRates(names[label], int((labels == label).sum()), _rates(decisions[labels == label])) for label in present
    ]
    return sorted(found, key=lambda each: ([-rate for rate in each.rates], each.name))


def by_confidence(
    decisions: Tensor, labels: Tensor, predictions: Tensor, first: Tensor, margins: Tensor
) -> list[Tenth]:
    """Tenths of the images, the least sure first: parts of equal size, but for one image more in some.

    ``predictions [M]`` are the cascade's, ``first [M]`` its first member's, whose ``margins [M]`` sort the images.
    """
    parts = margins.argsort(stable=True).tensor_split(min(TENTHS, len(margins)))
    return [
        Tenth(
            low=float(margins[part[0]]),
            high=float(margins[part[-1]]),
            images=len(part),
            rates=_rates(decisions[part]),
            first=_share(first[part] == labels[part]),
            accuracy=_share(predictions[part] == labels[part]),
        )
        for part in parts
    ]


def interval(rate: float, images: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of ``images``."""
    shrunk = 1 + Z * Z / images
    middle = (rate + Z * Z / (2 * images)) / shrunk
    half = Z * math.sqrt(rate * (1 - rate) / images + (Z / (2 * images)) ** 2) / shrunk
    return max(0.0, middle - half), min(1.0, middle + half)


def spread(found: Sequence[ClassRates]) -> tuple[float, float]:
    """The standard deviation over classes of the share that goes on, and what chance alone would make it.

    If every image goes on with the same probability p, classes of n_c images differ by ``sqrt(mean p (1 - p) / n_c)``.
    """
    rates = [each.rates[0] for each in found]
    whole = sum(each.images for each in found)
    p = sum(each.rates[0] * each.images for each in found) / whole
    chance = math.sqrt(statistics.mean(p * (1 - p) / each.images for each in found))
    return (statistics.stdev(rates) if len(rates) > 1 else 0.0), chance


def ends(found: Sequence[ClassRates]) -> list[ClassRates]:
    """All classes, or those at both ends where they are many."""
    return list(found) if len(found) <= 2 * FEW else [*found[:FEW], *found[-FEW:]]


def draw_classes(found: Sequence[ClassRates]) -> Markup:
    """A bar for each class of `ends`: the outline is all of its images, a filling those that run one member more."""
    shown = ends(found)
    left, top = 150, 26
    x = svg.Scale(0, 1, left, WIDTH - 150)
    gap = FEW if len(shown) < len(found) else len(shown)
    parts = []
    for index, each in enumerate(shown):
        y = top + ROW * index + (ROW if index >= gap else 0)
        low, high = interval(each.rates[0], each.images)
        words = f"{_percents(each.rates)} of {each.images}"
        outline = svg.tag("rect", x=x(0), y=y + 2, width=x(1) - x(0), height=ROW - 7, rx=2, class_="had")
        bars = [
            svg.tag("rect", x=x(0), y=y + 2, width=x(rate) - x(0), height=ROW - 7, rx=2, class_="kept")
            for rate in each.rates
        ]
        middle = y + (ROW - 3) / 2
        whisker = svg.tag("line", x1=x(low), x2=x(high), y1=middle, y2=middle, class_="whisker")
        title = svg.tag("title", f"{each.name}: {words} images, 95 % interval {_percents((low, high), ' to ')}")
        parts += [
            svg.text(left - 10, y + 14, svg.clipped(each.name), "end", "tick"),
            svg.tag("g", title, outline, *bars, whisker),
            svg.text(x(1) + 8, y + 14, words, "start", "tick"),
        ]
    if gap < len(shown):
        between = len(found) - len(shown)
        parts.append(svg.text(left, top + ROW * gap + 15, f"{between} classes in between", "start", "label"))
    parts.append(svg.text(left, 16, "share of the images that go on", "start", "label"))
    rows = len(shown) + (gap < len(shown))
    label = f"Share of the images that go on, of {len(shown)} of {len(found)} classes; the table has them all."
    return svg.figure(WIDTH, top + ROW * rows + 6, label, *parts)


def draw_tenths(found: Sequence[Tenth]) -> Markup:
    """Bars of the share that goes on, a filling for each member more, and lines of both accuracies."""
    y = svg.Scale(0, 1, HEIGHT - 66, 34)
    x = svg.Scale(0.5, len(found) + 0.5, 64, 64 + len(found) * SLOT)
    name = "images by the margin of the first member's answer, least sure first"
    parts = [svg.axes(x, y, "", "share of the images", None, svg.percent)]
    for number, each in enumerate(found, start=1):
        title = svg.tag(
            "title",
            f"margin {each.low:.2f} to {each.high:.2f}: {_percents(each.rates)} of {each.images} go on; accuracy "
            f"{svg.percent(each.first)} of the first member, {svg.percent(each.accuracy)} of the cascade",
        )
        box = {"x": x(number) - 0.36 * SLOT, "width": 0.72 * SLOT, "rx": 2}
        outline = svg.tag("rect", y=y(1), height=y(0) - y(1), class_="had", **box)
        bars = [svg.tag("rect", y=y(rate), height=y(0) - y(rate), class_="kept", **box) for rate in each.rates]
        parts.append(svg.tag("g", title, outline, *bars))
        parts.append(svg.text(x(number), y.start + 19, f"{each.low:.2f}–{each.high:.2f}", "middle", "tick"))
    for kind in ("first", "accuracy"):
        line = [(x(number), y(getattr(each, kind))) for number, each in enumerate(found, start=1)]
        parts.append(svg.polyline(line, f"curve {kind}"))
    parts.append(svg.text((x.start + x.end) / 2, y.start + 42, name, "middle", "label"))
    listed = "; ".join(
        f"margin {each.low:.2f} to {each.high:.2f} {_percents(each.rates)}, accuracy {svg.percent(each.first)} and "
        f"{svg.percent(each.accuracy)}"
        for each in found
    )
    label = f"Share of the images that go on, accuracy of the first member and of the cascade: {listed}."
    return svg.figure(max(x.end + 24, 460), HEIGHT, label, *parts)


def _rates(decisions: Tensor) -> tuple[float, ...]:
    return tuple(decisions.double().mean(0).tolist())


def _share(right: Tensor) -> float:
    return float(right.to(torch.float64).mean())


def _percents(rates: Sequence[float], between: str = ", ") -> str:
    return between.join(f"{100 * rate:.0f}%" for rate in rates)
