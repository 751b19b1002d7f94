"""Tables are measured within a limit of time, kept, and used on no other hardware."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from hybridprune.latency import cache as cache_module
from hybridprune.latency.cache import TimeCache
from hybridprune.latency.engines import Eager, Engine, threads_of
from hybridprune.latency.geometry import Geometry
from hybridprune.latency.measure import TableMaker
from hybridprune.latency.table import CHANNELS, Grid
from hybridprune.models.factored import DENSE, Ranks
from tests.latency.machine import Machine

CONV = Geometry(16, 32, 1, (8, 8), (3, 3), (1, 1), (1, 1), (1, 1))
FLAT = Geometry(24, 12, 1, ())


class Elsewhere(Eager):
    """The same engine on another processor."""

    @property
    def key(self) -> dict[str, Any]:
        return {**super().key, "hardware": "another"}


def maker(folder: Path, machine: Machine | None = None, engine: Engine | None = None, **options: Any) -> TableMaker:
    engine = engine or Eager(torch.device("cpu"))
    return TableMaker(engine, 2, machine or Machine(), **{"seconds": 1e9, "cache": TimeCache(folder), **options})


def test_a_table_has_the_times_of_the_clock(tmp_path: Path) -> None:
    machine = Machine(start=5.0, each=3.0, pointwise=2.0)
    found = maker(tmp_path, machine).tables([CONV, FLAT, CONV], "forms")
    assert list(found) == [CONV, FLAT]
    dense, two = found[CONV]["dense"], found[CONV]["two-sided"]
    assert float(dense.ns) == pytest.approx(5 + 3 * 2 * CONV.macs(), rel=1e-9)
    (_, first, *_), (_, second, *_) = two.axes
    rotations = 2 * 64 * (16 * first + second * 32)
    assert float(two.ns[1, 1]) == pytest.approx(15 + 3 * (2 * rotations + 2 * 64 * 9 * first * second), rel=1e-9)


def test_the_same_table_is_not_measured_twice(tmp_path: Path) -> None:
    one, two = Machine(), Machine(each=7.0)
    found = maker(tmp_path, one).tables([CONV], "forms")[CONV]
    again = maker(tmp_path, two).tables([CONV], "forms")[CONV]
    assert one.timed and not two.timed
    assert found.keys() == again.keys() and all(found[name].ns.equal(again[name].ns) for name in found)


@pytest.mark.parametrize("what", ["hardware", "batch", "geometry", "kind", "threads", "torch"])
def test_what_a_time_depends_on_is_measured_anew(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maker(tmp_path).tables([FLAT], "forms")
    machine, geometry = Machine(), dataclasses.replace(FLAT, size=(3,)) if what == "geometry" else FLAT
    made = maker(tmp_path, machine, Elsewhere(torch.device("cpu")) if what == "hardware" else None)
    if what == "batch":
        made = dataclasses.replace(made, batch=3)
    if what == "torch":
        monkeypatch.setattr(torch, "__version__", "another")
    with threads_of(2 if what == "threads" else None):
        made.tables([geometry], "channels" if what == "kind" else "forms")
    assert machine.timed


def test_a_file_of_other_hardware_is_not_used_whatever_its_name(tmp_path: Path) -> None:
    here, elsewhere = maker(tmp_path), maker(tmp_path, engine=Elsewhere(torch.device("cpu")))
    elsewhere.tables([FLAT], "forms")
    (file,) = tmp_path.glob("*.json")
    key = here.key(FLAT, "forms")
    shutil.copy(file, here.cache._records.path(key))
    assert here.cache.read(key) is None and here.cache.read(elsewhere.key(FLAT, "forms")) is not None


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 1}', "null", '{"format": 2, "key": {}, "grids": {}}'])
def test_a_broken_file_is_measured_anew_and_mended(content: str, tmp_path: Path) -> None:
    maker(tmp_path).tables([FLAT], "forms")
    (file,) = tmp_path.glob("*.json")
    whole = file.read_text()
    file.write_text(content)
    machine = Machine()
    maker(tmp_path, machine).tables([FLAT], "forms")
    assert machine.timed and file.read_text() == whole


def test_a_folder_that_cannot_be_written_is_told_and_no_more(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.warns(RuntimeWarning, match="times are not cached in"):
        found = maker(tmp_path / "file").tables([FLAT], "forms")
    assert found.keys() == {FLAT}


def test_the_default_folder_is_that_of_the_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache_module.default_folder() == Path("/caches/hybridprune/latency")


def points_of(found: dict[Geometry, Any]) -> int:
    return sum(grid.ns.numel() for grids in found.values() for grid in grids.values())


def test_the_limit_decides_how_many_points_are_timed(tmp_path: Path) -> None:
    numbers = []
    for seconds in (1e-9, 1.5, 1e9):
        made = maker(tmp_path / str(seconds), seconds=seconds, now=lambda: 0.0)
        numbers.append(points_of(made.tables([CONV, FLAT], "forms")))
    assert numbers[0] < numbers[1] < numbers[2]
    assert numbers[0] == (1 + 2 + 2 + 4 + 2) + (1 + 2 + 2 + 4)  # the ends are always measured


def test_the_limit_knows_how_long_layers_take_to_open(tmp_path: Path) -> None:
    """An engine that compiles each layer for seconds gets fewer points in the same time."""
    numbers = []
    for seconds in (0.0, 0.25):
        clock = itertools.count(step=seconds)
        found = maker(tmp_path / str(seconds), seconds=20, now=lambda clock=clock: next(clock)).tables([CONV], "forms")
        numbers.append(points_of(found))
    assert numbers[1] < numbers[0]


def test_channels_and_depthwise(tmp_path: Path) -> None:
    depthwise = Geometry(16, 16, 1, (8, 8), (3, 3), (1, 1), (1, 1), (1, 1), depthwise=True)
    found = maker(tmp_path, Machine(start=0.0)).tables([CONV, depthwise], "channels")
    whole, single = found[CONV][CHANNELS], found[depthwise][CHANNELS]
    assert len(whole.axes) == 2 and len(single.axes) == 1
    for grid, geometry in ((whole, CONV), (single, depthwise)):
        assert isinstance(grid, Grid) and float(grid.ns.flatten()[-1]) == 2 * geometry.macs(DENSE)
    assert CONV.macs(Ranks(2, 3), 4, 8) == 64 * (4 * 2 + 9 * 6 + 3 * 8)
