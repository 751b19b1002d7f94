from __future__ import annotations

import pytest

from hybridprune.report.html.blocks import draw
from tests.report.html.pages import shapes


def test_bars_are_mean_rates_and_dots_runs() -> None:
    drawing = draw([[1.0, 0.2, 0.0], [1.0, 0.4, 0.5]])
    full = float(shapes(drawing, "had")[0].get("height", ""))
    heights = [float(bar.get("height", "")) / full for bar in shapes(drawing, "kept")]
    assert heights == pytest.approx([1.0, 0.3, 0.25], abs=1e-3)
    bottom = {float(bar.get("y", "")) + float(bar.get("height", "")) for bar in shapes(drawing, "kept")}
    assert max(bottom) - min(bottom) < 0.02
    dots = sorted(float(dot.get("cy", "")) for dot in shapes(drawing, "seed"))
    assert len(dots) == 6 and dots[0] == dots[1]
    assert "block 2 30%" in drawing


def test_a_single_run_has_no_dots_and_many_blocks_fit() -> None:
    drawing = draw([[0.5] * 54])
    assert len(shapes(drawing, "kept")) == 54 and shapes(drawing, "seed") == []
    edges = [float(bar.get("x", "")) + float(bar.get("width", "")) for bar in shapes(drawing, "kept")]
    assert edges == sorted(edges) and edges[-1] < float(drawing.split('viewBox="0 0 ')[1].split()[0])


def test_bars_of_a_cascade_begin_at_its_second_member() -> None:
    drawing = draw([[0.5, 0.25], [0.7, 0.25]], members=True)
    assert "member 2 60%, member 3 25%" in drawing and "block" not in drawing
    assert len(shapes(drawing, "seed")) == 4
