from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridprune.report.html import svg

HOSTILE = "</text><script>alert('x')</script>\"&"


def test_texts_and_attributes_are_escaped() -> None:
    drawing = svg.figure(10, 10, HOSTILE, svg.text(1, 2, HOSTILE), svg.marker("D", 1, 2, 3, "mark", HOSTILE))
    tree = ElementTree.fromstring(drawing)
    assert tree.get("aria-label") == HOSTILE
    assert [element.text for element in tree.iter() if element.tag in ("text", "title")] == [HOSTILE] * 2
    assert {element.tag for element in tree.iter()} == {"svg", "text", "polygon", "title"}


@given(st.floats(-100, 100), st.floats(0.01, 1e6), st.integers(2, 10))
def test_ticks_are_round_evenly_spaced_and_inside(low: float, width: float, count: int) -> None:
    scale = svg.Scale(low, low + width, 0, 100)
    ticks = scale.ticks(count)
    assert 1 <= len(ticks) <= count + 1
    if len(ticks) > 1:
        steps = np.diff(ticks)
        assert steps == pytest.approx(steps[0], rel=1e-6)
        assert float(f"{steps[0]:.1e}") == pytest.approx(steps[0], rel=1e-6)
    slack = 1e-6 * width
    assert all(low - slack <= tick <= low + width + slack for tick in ticks)


def test_a_scale_maps_its_ends_and_is_linear() -> None:
    scale = svg.Scale(2, 4, 100, 0)
    assert [scale(2), scale(3), scale(4)] == [100, 50, 0]


@pytest.mark.parametrize("values", [[0.5], [0.0], [3.0, 3.0], [0.1, 0.9], [-2.0, 5.0]])
def test_a_span_encloses_its_values_and_is_not_empty(values: list[float]) -> None:
    low, high = svg.span(values)
    assert low < min(values) and high > max(values)
    wide = svg.span(values, least=100.0)
    assert wide[1] - wide[0] >= 100


def test_formats() -> None:
    assert [svg.whole(value) for value in (2.0, 2.5, 1000)] == ["2", "", "1,000"]
    assert [svg.percent(value) for value in (0.5, 0.98765)] == ["50%", "98.77%"]
