"""Rates of a cascade's images, recomputed image by image, and what is drawn of them."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import pytest
import torch
from scipy.stats import binomtest

from hybridprune.report.html.escalation import (
    FEW,
    ClassRates,
    Tenth,
    by_class,
    by_confidence,
    draw_classes,
    draw_tenths,
    ends,
    escalation,
    interval,
    spread,
)
from hybridprune.report.html.routed_images import route_images
from tests.report.html.pages import cascade_run, routed_run, shapes


def made_up(images: int, members: int, classes: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Decisions ``[M, K - 1]``, labels, predictions, first predictions and margins, ``[M]`` each."""
    draw = torch.Generator().manual_seed(seed)
    decisions = torch.randint(2, (images, members - 1), generator=draw).float().cumprod(1)
    labels, predictions, first = torch.randint(classes, (3, images), generator=draw)
    return decisions, labels, predictions, first, torch.rand(images, generator=draw)


@pytest.mark.parametrize("members", [2, 4])
def test_a_classs_rates_are_counted_image_by_image(members: int) -> None:
    decisions, labels, *_ = made_up(200, members, 7)
    labels[labels == 3] = 2  # a class without images
    names = [f"class {k}" for k in range(7)]
    found = by_class(decisions, labels, names)
    assert {each.name for each in found} == {name for name in names if name != "class 3"}
    for each in found:
        own = [row for row, label in zip(decisions.tolist(), labels.tolist(), strict=True) if names[label] == each.name]
        assert each.images == len(own)
        assert each.rates == pytest.approx([sum(row[k] for row in own) / len(own) for k in range(members - 1)])
    rates = [each.rates[0] for each in found]
    assert rates == sorted(rates, reverse=True) and len(set(rates)) > 1


@pytest.mark.parametrize("images", [3, 10, 203])
def test_tenths_are_the_images_sorted_by_margin(images: int) -> None:
    decisions, labels, predictions, first, margins = made_up(images, 3, 3)
    found = by_confidence(decisions, labels, predictions, first, margins)
    assert len(found) == min(10, images) and sum(each.images for each in found) == images
    assert max(each.images for each in found) - min(each.images for each in found) <= 1
    order = sorted(range(images), key=lambda place: float(margins[place]))
    start = 0
    for each in found:
        own = order[start : start + each.images]
        start += each.images
        assert (each.low, each.high) == (float(margins[own[0]]), float(margins[own[-1]]))
        assert each.rates == pytest.approx([sum(float(decisions[i, k]) for i in own) / len(own) for k in (0, 1)])
        assert each.first == pytest.approx(sum(bool(first[i] == labels[i]) for i in own) / len(own))
        assert each.accuracy == pytest.approx(sum(bool(predictions[i] == labels[i]) for i in own) / len(own))


@pytest.mark.parametrize(("right", "images"), [(0, 20), (3, 20), (20, 20), (400, 1000)])
def test_the_interval_is_wilsons(right: int, images: int) -> None:
    known = binomtest(right, images).proportion_ci(0.95, method="wilson")
    assert interval(right / images, images) == pytest.approx((known.low, known.high), abs=1e-4)


def test_classes_that_go_on_alike_spread_as_chance_has_it_and_others_more() -> None:
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(100).repeat(20)
    names = [str(k) for k in range(100)]
    alike = (torch.rand(2000, 1, generator=draw) < 0.3).float()
    measured, chance = spread(by_class(alike, labels, names))
    share = float(alike.mean())
    assert chance == pytest.approx(math.sqrt(share * (1 - share) / 20)) and 0.8 < measured / chance < 1.2
    own = (torch.rand(2000, 1, generator=draw) < 0.1 + 0.4 * (labels % 2)[:, None]).float()
    found = by_class(own, labels, names)
    measured, chance = spread(found)
    assert measured == pytest.approx(statistics.stdev(each.rates[0] for each in found)) and measured > 1.8 * chance
    assert spread([ClassRates("only", 9, (0.5,))])[0] == 0


def test_of_many_classes_both_ends_are_drawn() -> None:
    found = [ClassRates(f"class {k:03}", 20, (1 - k / 100, (1 - k / 100) / 2)) for k in range(100)]
    shown = ends(found)
    assert [each.name for each in shown] == [f"class {k:03}" for k in (*range(10), *range(90, 100))]
    drawing = draw_classes(found)
    assert "80 classes in between" in drawing and "class 009" in drawing and "class 010" not in drawing
    assert "91%, 46% of 20" in drawing
    assert len(shapes(drawing, "had")) == 20 == len(shapes(drawing, "whisker"))
    full = float(shapes(drawing, "had")[0].get("width", ""))
    widths = [float(bar.get("width", "")) / full for bar in shapes(drawing, "kept")]
    assert widths == pytest.approx([rate for each in shown for rate in each.rates], abs=1e-3)
    whisker = shapes(drawing, "whisker")[5]
    ends_drawn = [(float(whisker.get(name, "")) - 150) / full for name in ("x1", "x2")]
    assert ends_drawn == pytest.approx(interval(0.95, 20), abs=1e-3)
    tops = [float(bar.get("y", "")) for bar in shapes(drawing, "had")]
    assert tops == sorted(tops) and tops[-1] + 22 <= float(drawing.split('viewBox="0 0 ')[1].split()[1].rstrip('"'))
    few = draw_classes(found[: 2 * FEW])
    assert len(shapes(few, "had")) == 20 and "in between" not in few


def test_bars_and_lines_of_the_tenths_are_their_figures() -> None:
    found = [Tenth(k / 10, (k + 1) / 10, 50, (1 - k / 10, 0.5 - k / 20), k / 10, (k + 1) / 10) for k in range(10)]
    drawing = draw_tenths(found)
    full = float(shapes(drawing, "had")[0].get("height", ""))
    heights = [float(bar.get("height", "")) / full for bar in shapes(drawing, "kept")]
    assert heights == pytest.approx([rate for each in found for rate in each.rates], abs=1e-3)
    bottom = float(shapes(drawing, "had")[0].get("y", "")) + full
    for kind in ("first", "accuracy"):
        (line,) = shapes(drawing, kind)
        drawn = [(bottom - float(point.split(",")[1])) / full for point in line.get("points", "").split()]
        assert drawn == pytest.approx([getattr(each, kind) for each in found], abs=1e-3)
    assert "margin 0.20 to 0.30 80%, 40%, accuracy 20% and 30%" in drawing


def test_a_runs_rates_are_of_the_routed_images(tmp_path: Path, image_tree: Path) -> None:
    images = route_images(cascade_run(tmp_path / "run", image_tree), 100, None, "cpu")
    found = escalation(images)
    assert found is not None and images.first is not None and images.margins is not None and found.members == 3
    assert sum(each.images for each in found.classes) == sum(each.images for each in found.tenths) == 30
    for rates in (found.classes, found.tenths):
        for gate in (0, 1):
            mean = sum(each.images * each.rates[gate] for each in rates) / 30
            assert mean == pytest.approx(images.routed.block_rates[gate])
    assert sum(each.images * each.accuracy for each in found.tenths) / 30 == pytest.approx(images.routed.accuracy)
    first = float((images.first.argmax(1) == images.routed.labels).double().mean())
    assert sum(each.images * each.first for each in found.tenths) / 30 == pytest.approx(first)
    assert escalation(route_images(routed_run(tmp_path / "blocks", image_tree), 100, None, "cpu")) is None
