from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hybridprune.report.html.pareto import LARGE, Point, draw, front, legend
from tests.report.html.pages import shapes

DENSE = Point(1, "dense", "without pruning", 2.0, 0.78)
STATIC = Point(2, "static", "static only", 0.5, 0.77, 0.01, 0.002, ((0.49, 0.768), (0.51, 0.772)), parent=1)
BOTH = Point(3, "both", "static + dynamic", 0.4, 0.75, parent=2)
WORSE = Point(4, "worse", "dynamic only", 1.5, 0.70, parent=1)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_the_front_is_what_nothing_dominates(pairs: list[tuple[int, int]]) -> None:
    points = [Point(i, "", "static only", x, y) for i, (x, y) in enumerate(pairs)]
    found = {(p.x, p.accuracy) for p in front(points)}
    expected = {(x, y) for x, y in pairs if not any((a <= x and b >= y and (a, b) != (x, y)) for a, b in pairs)}
    assert found == expected


def test_marks_stand_at_their_cost_and_accuracy() -> None:
    drawing = draw([DENSE, STATIC, BOTH, WORSE], "GFLOPs", LARGE)
    dots = [(float(e.get("cx", "")), float(e.get("cy", ""))) for e in shapes(drawing, "run")]
    (circle,) = [e for e in shapes(drawing, "mark") if e.tag == "circle"]
    places = np.array([*dots, (float(circle.get("cx", "")), float(circle.get("cy", "")))])
    values = np.array([*STATIC.repeats, (DENSE.x, DENSE.accuracy)])
    for axis, sign in ((0, 1), (1, -1)):
        slope, offset = np.polyfit(values[:, axis], places[:, axis], 1)
        assert np.sign(slope) == sign
        np.testing.assert_allclose(slope * values[:, axis] + offset, places[:, axis], atol=0.05)
    assert len(shapes(drawing, "mark")) == 4 and len(shapes(drawing, "error")) == 2
    assert len(shapes(drawing, "lineage")) == 3
    (line,) = shapes(drawing, "front")
    assert len((line.get("points") or "").split()) == 3  # WORSE is not on it
    assert "dense 78% at 2" in drawing


def test_a_deployed_network_is_a_hollow_mark_and_nobodys_parent() -> None:
    deployed = Point(2, "static, deployed", "static only", 0.3, 0.77, hollow=True)
    drawing = draw([DENSE, STATIC, deployed, BOTH], "ms", LARGE)
    assert len(shapes(drawing, "hollow")) == 1 and len(shapes(drawing, "mark")) == 3
    ends = [(line.get("points") or "").split() for line in shapes(drawing, "lineage")]
    assert ends[0][1] == ends[1][0]  # BOTH hangs on STATIC itself


def test_one_point_alone_can_be_drawn() -> None:
    assert len(shapes(draw([DENSE], "GFLOPs", LARGE), "mark")) == 1


def test_the_legend_names_the_arms_that_occur() -> None:
    shown = legend(["static only", "without pruning"])
    assert shown.index("without pruning") < shown.index("static only") and "dynamic" not in shown
