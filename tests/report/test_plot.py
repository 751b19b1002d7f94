from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer

from hybridprune.report import Row, collect
from hybridprune.report.plot import draw, encode
from tests.report.run_folders import DENSE_MACS, result, write, write_lineage


@pytest.fixture
def rows(tmp_path: Path) -> list[Row]:
    write_lineage(tmp_path, seeds=(0, 1), accuracy=(0.7, 0.8))
    write(tmp_path / "branch", result("rl", "only", "s0", group="only", params__backbone=400_000))
    write(tmp_path / "other", result("sp", "o", group="o", network__label="resnet110-w16", dense__macs=10 * DENSE_MACS))
    return collect(tmp_path)


def lines(axes: Axes) -> list[list[tuple[float, float]]]:
    points = [[(float(x), float(y)) for x, y in np.asarray(line.get_xydata())] for line in axes.lines]
    return [line for line in points if len(line) > 1]


def test_one_point_a_row_at_its_flops_and_accuracy(rows: list[Row]) -> None:
    (axes,) = draw(rows).axes
    containers = [container for container in axes.containers if isinstance(container, ErrorbarContainer)]
    points = [tuple(np.asarray(container[0].get_xydata())[0]) for container in containers]
    assert points == [
        pytest.approx((0.1, 75)), pytest.approx((0.05, 75)), pytest.approx((0.0375, 59.5)),
        pytest.approx((0.0375, 59.5)), pytest.approx((0.1, 75)),
    ]  # fmt: skip


def test_error_bars_are_the_deviations(rows: list[Row]) -> None:
    (axes,) = draw(rows).axes
    static = axes.containers[1]
    assert isinstance(static, ErrorbarContainer)
    (vertical,) = static[2][1].get_segments()
    assert vertical[1][1] - vertical[0][1] == pytest.approx(2 * 10 * 0.5**0.5)


def test_one_line_a_lineage(rows: list[Row]) -> None:
    (axes,) = draw(rows).axes
    dense, static, dynamic = (0.1, 75), (0.05, 75), (0.0375, 59.5)
    drawn = sorted(lines(axes), key=len)
    assert drawn[0] == [pytest.approx(dense), pytest.approx(dynamic)]
    assert drawn[1] == [pytest.approx(dense), pytest.approx(static), pytest.approx(dynamic)]
    assert len(drawn) == 2  # a row alone makes no line


def test_labels(rows: list[Row]) -> None:
    (axes,) = draw(rows).axes
    assert "GFLOPs" in axes.get_xlabel() and "accuracy (%)" in axes.get_ylabel()
    legend = axes.get_legend()
    assert legend is not None
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == [
        *(f"resnet32-w16, tree: {row.name}" for row in rows[:4]),
        "resnet110-w16, tree: without pruning",
    ]


def test_png_and_svg_are_reproducible(rows: list[Row]) -> None:
    png, svg = (encode(draw(rows), format) for format in ("png", "svg"))
    assert png.startswith(b"\x89PNG") and ElementTree.fromstring(svg).tag.endswith("svg")
    assert (png, svg) == (encode(draw(rows), "png"), encode(draw(rows), "svg"))
