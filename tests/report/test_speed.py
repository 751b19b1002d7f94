"""What of a row's latencies is averaged and shown, against numpy and by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hybridprune.report import Row, collect
from hybridprune.report.bench import Measurement
from hybridprune.report.speed import Setting, average, of_row, shown
from tests.report.run_folders import result, write, write_bench

PLACE = "cpu, 2 threads"
EAGER, DEPLOYED = Setting(1, PLACE, False), Setting(1, PLACE, True)


def measured(
    ms: float, realised: float | None, form: str = "eager", network: str = "prune", place: str = "cpu", batch: int = 1
) -> Measurement:
    return Measurement(batch, place, network, form, ms, 1000 / ms, 4.0, realised)


def test_runs_are_averaged_setting_by_setting() -> None:
    both, onnx = average([[measured(2.0, 2.0)], [measured(4.0, 3.0), measured(1.0, None, "onnx")]])
    assert (both.runs, both.median_ms.mean, both.images_per_second.mean) == (2, 3.0, 375.0)
    assert both.median_ms.std == pytest.approx(np.std([2.0, 4.0], ddof=1))
    assert both.realised_speedup is not None and both.realised_speedup.mean == 2.5
    assert both.realised_share == 2.5 / 4
    assert (onnx.runs, onnx.form, onnx.realised_speedup, onnx.realised_share) == (1, "onnx", None, None)
    assert both.setting == (1, "eager", "cpu") and onnx.median_ms.std is None


@pytest.mark.parametrize("change", [{"place": "cpu, 1 thread"}, {"batch": 2}, {"form": "onnx"}, {"network": "rl"}])
def test_what_differs_in_anything_is_never_averaged(change: dict[str, object]) -> None:
    found = average([[measured(2.0, 2.0)], [measured(4.0, 3.0, **change)]])  # type: ignore[arg-type]
    assert [(speed.runs, speed.median_ms.mean) for speed in found] == [(1, 2.0), (1, 4.0)]


def row(folder: Path, stage: str) -> Row:
    (found,) = collect(folder)
    assert found.lineage[-1][0] == stage
    return found


@pytest.mark.parametrize(
    ("stage", "own", "deployed"),
    [("sp", "dense", "dense deployed"), ("prune", "prune", "deployed"), ("rl", "rl", "deployed")],
)
def test_shown_is_the_network_whose_accuracy_the_row_has(tmp_path: Path, stage: str, own: str, deployed: str) -> None:
    run = write(tmp_path / "run", result(stage, "r")).parent
    names = ("dense", "sp", "prune", "rl", "dense deployed", "deployed")
    times = {(name, "eager"): float(i) for i, name in enumerate(names, start=1)}
    write_bench(run, times)
    found = {setting: speed.median_ms.mean for setting, speed in shown(row(tmp_path, stage)).items()}
    assert found == {EAGER: times[own, "eager"], DEPLOYED: times[deployed, "eager"]}


def test_the_dense_network_is_deployed_by_exporting_it(tmp_path: Path) -> None:
    run = write(tmp_path / "run", result("sp", "r")).parent
    write_bench(run, {("dense", "eager"): 9.0, ("dense", "onnx"): 2.0, ("dense deployed", "eager"): 4.0})
    found = {setting: (speed.form, speed.median_ms.mean) for setting, speed in shown(row(tmp_path, "sp")).items()}
    assert found == {EAGER: ("eager", 9.0), DEPLOYED: ("onnx", 2.0)}


def test_the_deployed_network_is_shown_in_its_fastest_form_of_equal_accuracy(tmp_path: Path) -> None:
    run = write(tmp_path / "run", result("rl", "r")).parent
    times = {("deployed", "eager"): 4.0, ("deployed", "onnx"): 3.0, ("deployed", "int8"): 1.0, ("rl", "onnx"): 0.5}
    write_bench(run, times)
    write_bench(run, {("deployed", "eager"): 7.0, ("deployed", "onnx"): 8.0}, batch=32)
    one = row(tmp_path, "rl")
    found = {setting: (speed.form, speed.median_ms.mean) for setting, speed in shown(one).items()}
    assert found == {DEPLOYED: ("onnx", 3.0), Setting(32, PLACE, True): ("eager", 7.0)}
    assert len(of_row(one)) == 6


def test_a_form_that_only_some_seeds_measured_gives_way(tmp_path: Path) -> None:
    for seed in (0, 1):
        run = write(tmp_path / str(seed), result("rl", f"r{seed}", seed=seed)).parent
        write_bench(run, {("deployed", "eager"): 4.0 + seed} | ({("deployed", "onnx"): 1.0} if seed else {}))
    speed = shown(row(tmp_path, "rl"))[DEPLOYED]
    assert (speed.form, speed.runs, speed.median_ms.mean) == ("eager", 2, 4.5)
