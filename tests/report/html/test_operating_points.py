from __future__ import annotations

import pytest

from hybridprune.report.html.operating_points import Policy, draw
from hybridprune.report.html.pareto import Point
from tests.report.html.pages import shapes

BLOCKS = Policy(3, "static + dynamic", False, [(1e9, 0.5), (2e9, 0.6), (3e9, 0.61)])
CASCADE = Policy(4, "static + dynamic, cascade", True, [(1e9, 0.55), (2e9, 0.7)])


def test_each_policy_is_a_line_of_its_kind_through_its_points() -> None:
    drawing = draw([BLOCKS, CASCADE], [Point(1, "without pruning", "without pruning", 3.0, 0.65)], "test")
    for policy in (BLOCKS, CASCADE):
        line, *dots = shapes(drawing, policy.kind)
        places = [tuple(map(float, point.split(","))) for point in line.get("points", "").split()]
        assert len(places) == len(policy.curve) == len(dots)
        for place, dot in zip(places, dots, strict=True):
            assert place == pytest.approx((float(dot.get("cx", "")), float(dot.get("cy", ""))), abs=0.06)
    x = {float(dot.get("cx", "")) for dot in (*shapes(drawing, "blocks")[1:], *shapes(drawing, "cascade")[1:])}
    assert len(x) == 3  # the same scale for both
    heights = [float(shapes(drawing, kind)[1].get("cy", "")) for kind in ("blocks", "cascade")]
    assert heights[0] > heights[1]  # downwards
    assert len(shapes(drawing, "mark")) == 1 and "1: without pruning: 65% at 3" in drawing
    assert "Test accuracy" in drawing and "4 static + dynamic, cascade from 55% at 1 to 70% at 2" in drawing


def test_a_single_point_is_drawn() -> None:
    assert len(shapes(draw([Policy(1, "dynamic only", True, [(1e9, 0.5)])], [], "validation"), "point")) == 1
