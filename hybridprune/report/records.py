"""Records that the report reads: a typed one per finished run folder."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import TypeVar

from hybridprune.config import SCRIPTS
from hybridprune.config.networks import CASCADE
from hybridprune.errors import UserError
from hybridprune.json_text import read_json, short, value_at
from hybridprune.report.bench import Measurement, read_bench

FORMAT = 1
STAGES = tuple(SCRIPTS)
T = TypeVar("T")


def _at(name: str, kind: type[T], low: float = -math.inf, high: float = math.inf) -> T:
    """A field that stands at this dotted name of a ``result.json`` and, if a number, lies in [low, high]."""
    return field(metadata={"name": name, "kind": kind, "low": low, "high": high})


def _perhaps_at(name: str, kind: type[T], low: float = -math.inf, high: float = math.inf) -> T | None:
    """The same, or None: results that are older than the figure do not have it."""
    return field(default=None, metadata={"name": name, "kind": kind, "low": low, "high": high})


@dataclass(frozen=True)
class RunRecord:
    """The part of a run that the table shows; accuracies and rates are test figures in [0, 1]."""

    path: Path
    modified_ns: int
    parent_id: str | None
    bench: tuple[Measurement, ...]
    finite: bool
    """Whether the network gave numbers on all test images: a loss of null is one that is not finite."""
    stage: str = _at("stage", str)
    run_id: str = _at("run_id", str)
    group: str = _at("group", str)
    experiment: str = _at("exp_name", str)
    seed: int = _at("seed", int)
    dataset: str = _at("dataset.name", str)
    """With the number of classes of a subtask."""
    dataset_digest: str = _at("dataset.digest", str)
    network: str = _at("network.label", str)
    architecture: str = _at("network.name", str)
    backbone_params: int = _at("params.backbone", int, low=0)
    gate_params: int = _at("params.gates", int, low=0)
    backbone_macs: int = _at("macs.backbone", int, low=0)
    dense_params: int = _at("dense.params", int, low=1)
    dense_macs: int = _at("dense.macs", int, low=1)
    stored_bytes: int = _at("stored_bytes", int, low=0)
    always_on_accuracy: float = _at("test.always_on.accuracy", float, low=0, high=1)
    routed_accuracy: float = _at("test.routed.accuracy", float, low=0, high=1)
    routed_macs: float = _at("test.routed.expected_macs", float, low=0)
    routed_rate: float = _at("test.routed.mean_rate", float, low=0, high=1)
    effective_sparsity: float | None = _perhaps_at("effective_sparsity", float, high=1)
    method: str | None = _perhaps_at("method", str)
    """By which stage 2 has cut; other stages have none."""
    target_ms: float | None = _perhaps_at("latency.target_ms", float, low=0)
    """Of a budget of time, of which the next two are what was expected and what the clock said."""
    predicted_ms: float | None = _perhaps_at("latency.predicted_ms", float, low=0)
    realised_ms: float | None = _perhaps_at("latency.realised_ms", float, low=0)
    members: tuple[str, ...] = ()
    """The run ids of a cascade's members."""

    @property
    def cascade(self) -> bool:
        """Whether its gates stand behind whole networks, and not before blocks."""
        return self.architecture == CASCADE

    @property
    def key(self) -> tuple[str, str, str]:
        """Runs of one key differ by seed only; a group knows no paths, so the data's digest counts too."""
        return self.stage, self.group, self.dataset_digest


def read_run(path: Path) -> RunRecord:
    """Read one ``result.json``, and the ``bench.json`` beside it if there is one.

    Raises `UserError` naming the file if one is corrupt or of unknown format.
    """
    try:
        data = read_json(path)
        modified_ns = path.stat().st_mtime_ns
        if (version := value_at(data, "format", int)) != FORMAT:
            raise ValueError(f"format {version} is unknown, this version reads format {FORMAT}")
        if (stage := value_at(data, "stage", str)) not in STAGES:
            raise ValueError(f"stage {short(stage)} is none of {', '.join(STAGES)}")
        network = value_at(data, "network", dict)
        if "label" not in network and {"name", "depth", "width"} <= network.keys():  # written by 0.1.0
            network["label"] = f"{network['name']}{network['depth']}-w{network['width']}"
        there = {f for f in fields(RunRecord) if f.metadata and f.metadata["name"].partition(".")[0] in data}
        known = [f for f in fields(RunRecord) if f.metadata and (f.default is MISSING or f in there)]
        values = {f.name: value_at(data, **f.metadata) for f in known}
        is_root = value_at(data, "parent", object) is None
        parent_id = None if is_root else value_at(data, "parent.run_id", str)
        members = tuple(value_at(each, "run_id", str) for each in value_at({"members": [], **data}, "members", list))
        readings = [value_at(data, f"test.{name}", dict) for name in ("always_on", "routed")]
        finite = all(reading.get("loss", 0.0) is not None for reading in readings)
        if subtask := value_at({"classes": [], **value_at({"config": {}, **data}, "config", dict)}, "classes", list):
            # Accuracies of some classes are none of all: such runs stand by themselves.
            values["dataset"] += f" ({len(subtask)} of {value_at(data, 'dataset.classes', int)} classes)"
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {error}; restore the file or move the run folder away") from error
    bench = read_bench(path.parent)
    return RunRecord(
        path=path, modified_ns=modified_ns, parent_id=parent_id, bench=bench, finite=finite, members=members, **values
    )


def read_runs(results_dir: str | Path, tell: Callable[[str], object] = warnings.warn) -> list[RunRecord]:
    """Read every finished run at any depth, and ``tell``, in a line each, of those that can't be read.

    Raises `UserError` if there is none, or if ``results_dir`` itself is one that can't be read.
    """
    folder = Path(results_dir)
    if not folder.is_dir():
        raise UserError(f"RESULTS {folder}: no such folder; give a run folder or a folder of runs")
    records, broken = [], []
    for path in sorted(folder.rglob("result.json")):
        try:
            records.append(read_run(path))
        except UserError as error:
            if path.parent == folder:
                raise
            broken.append(error)
    if broken and not records:
        raise UserError(f"RESULTS {folder}: no run that can be read, but {broken[0]}") from broken[0]
    for error in broken:
        tell(f"not counted: {error}")
    if not records:
        raise UserError(f"RESULTS {folder}: no finished run (no folder with a result.json at any depth)")
    return records


def unfinished_runs(results_dir: str | Path) -> list[Path]:
    """Folders that hold a ``spec.json`` or ``config.json``, but no ``result.json``."""
    finished = {path.parent for path in Path(results_dir).rglob("result.json")}
    # A config.json above finished runs is a project's or a sweep's, not a run's.
    above = {parent for run in finished for parent in run.parents}
    begun = {path.parent for name in ("spec.json", "config.json") for path in Path(results_dir).rglob(name)}
    return sorted(begun - finished - above)
