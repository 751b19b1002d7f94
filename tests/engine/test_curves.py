"""Tensorboard's files: what is added is in them at once, and a full disk is an error of whoever adds."""

from __future__ import annotations

import errno
import math
import struct
from pathlib import Path

import pytest
from tensorboardX.proto import event_pb2

from hybridprune.engine.curves import Curves
from tests.processes import file_size_limit


def points(folder: Path) -> list[tuple[str, int, float]]:
    """All that the event files hold (records of length, checksum, event, checksum)."""
    found = []
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("Q", content[:8])
            event = event_pb2.Event.FromString(content[12 : 12 + length])  # type: ignore[attr-defined]
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            content = content[16 + length :]
    return found


def test_points_are_on_disk_at_once_and_in_a_file_for_each_training(tmp_path: Path) -> None:
    for phase in ("a", "b"):
        with Curves(tmp_path / "tb") as curves:
            curves.add({phase: 1.5, "loss": 0.5}, 3)
            assert (phase, 3, 1.5) in points(tmp_path / "tb")
            curves.add({phase: 2.5}, 4)
    assert sorted(points(tmp_path / "tb")) == [
        *[("a", 3, 1.5), ("a", 4, 2.5), ("b", 3, 1.5), ("b", 4, 2.5)],
        *[("loss", 3, 0.5), ("loss", 3, 0.5)],
    ]


def test_what_is_not_finite_is_no_point_and_nothing_is_said(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with Curves(tmp_path / "tb") as curves:
        curves.add({"loss": math.nan, "rate": math.inf, "accuracy": 0.5}, 3)
    assert points(tmp_path / "tb") == [("accuracy", 3, 0.5)]
    assert (*capfd.readouterr(), caplog.text) == ("", "", "")


def test_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(OSError) as raised, Curves(tmp_path / "tb") as curves:
        for step in range(20):  # more than tensorboardX's queue holds
            with file_size_limit(100):
                curves.add({"loss": 1.0}, step)
    assert raised.value.errno == errno.EFBIG and raised.value.filename == str(tmp_path / "tb")
