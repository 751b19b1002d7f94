"""What compiling took is found again for the same network, and tells something of others on the same machine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from hybridprune.engine.compile_times import CompileTimes
from hybridprune.engine.compile_trial import Cost

CPU, SHAPE = torch.device("cpu"), ((4, 3, 8, 8),)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def times(layers: int, channels: int = 4, how: str = "fp32") -> CompileTimes:
    return CompileTimes.of(
        nn.Sequential(*(nn.Conv2d(channels, channels, 1) for _ in range(layers))), CPU, precision=how
    )


def test_the_same_network_is_found_and_the_last_time_counts() -> None:
    assert times(2).expected(SHAPE) is None
    times(2).keep(SHAPE, Cost(9.0, 0.9))
    times(3).keep(SHAPE, Cost(30.0, 0.5))
    times(2).keep(SHAPE, Cost(4.0, 0.7))
    assert times(2).expected(SHAPE) == (4.0, 0.7) and times(3).expected(SHAPE) == (30.0, 0.5)


def test_others_are_expected_to_take_as_long_per_layer() -> None:
    for layers, cost in ((1, Cost(2.0, 0.9)), (2, Cost(20.0, 0.5)), (4, Cost(12.0, 0.8))):
        times(layers).keep(SHAPE, cost)
    for other, shape in ((times(4, channels=6), SHAPE), (times(4), ((2, 3, 8, 8),))):  # 2, 10 and 3 seconds a layer
        assert other.expected(shape) == (12.0, 0.8)
    frozen = times(4)
    frozen.net.requires_grad_(False)
    assert frozen.expected(SHAPE) == (12.0, 0.8) and times(8).expected(SHAPE) == (24.0, 0.8)


def test_another_precision_or_machine_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    times(2).keep(SHAPE, Cost(4.0, 0.7))
    assert times(2, how="bf16").expected(SHAPE) is None
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    assert times(2).expected(SHAPE) is None


@pytest.mark.parametrize("content", ["", "null", '{"a": 3}', '{"a": {"layers": 0, "seconds": 1, "share": 1}}'])
def test_a_broken_file_is_none(content: str, tmp_path: Path) -> None:
    times(2).keep(SHAPE, Cost(4.0, 0.7))
    (file,) = tmp_path.rglob("*.json")
    whole = file.read_text()
    start = whole.index('"networks": ') + len('"networks": ')
    file.write_text(whole[:start] + content + "}" if content else "")
    assert times(2).expected(SHAPE) is None
    times(2).keep(SHAPE, Cost(4.0, 0.7))
    assert times(2).expected(SHAPE) == (4.0, 0.7)
