from __future__ import annotations

from typing import Any

import numpy as np

from hybridprune.report.html.curves import draw
from tests.report.html.pages import shapes


def line(phase: int, epoch: int, accuracy: float, **more: Any) -> dict[str, Any]:
    return {"phase": phase, "epoch": epoch, "validation_accuracy": accuracy, **more}


def places(drawing: str, class_: str) -> np.ndarray:
    (curve,) = shapes(drawing, class_)
    return np.array([tuple(map(float, pair.split(","))) for pair in (curve.get("points") or "").split()])


def test_phases_stand_one_behind_the_other_and_values_are_to_scale() -> None:
    lines = [line(0, 0, 0.1), line(0, 1, 0.5), line(0, 2, 0.6), line(1, 0, 0.4), line(1, 1, 0.7)]
    ((heading, drawing),) = draw([lines])
    assert heading == "accuracy" and "validation ends at 70%" in drawing
    points = places(drawing, "validation")
    for axis, values in ((0, [0, 1, 2, 2, 3]), (1, [0.1, 0.5, 0.6, 0.4, 0.7])):
        slope, offset = np.polyfit(values, points[:, axis], 1)
        assert np.sign(slope) == (1, -1)[axis]
        np.testing.assert_allclose(slope * np.array(values) + offset, points[:, axis], atol=0.1)


def test_what_is_missing_not_finite_or_constant_is_not_drawn() -> None:
    lines = [
        line(0, 0, 0.1, lr=0.1, train_cross_entropy=float("nan")),
        line(0, 1, 0.2, lr=0.1, train_cross_entropy=2.0, train_accuracy=0.3),
        line(0, 2, 0.3, lr=0.1, train_cross_entropy=1.0, train_accuracy=0.4),
    ]
    found = dict(draw([lines]))
    assert list(found) == ["accuracy", "cross-entropy (nats)"]
    assert len(places(found["accuracy"], "train")) == 2 and len(places(found["accuracy"], "validation")) == 3
    assert len(places(found["cross-entropy (nats)"], "train")) == 2
    assert draw([]) == draw([[]]) == draw([[line(0, 0, 0.5)]]) == []


def test_each_run_has_its_line() -> None:
    ((_, drawing),) = draw([[line(0, 0, 0.1), line(0, 1, 0.2)], [line(0, 0, 0.1), line(0, 1, 0.4)]])
    assert len(shapes(drawing, "validation")) == 2
