"""Records to table rows: grouping by configuration, statistics over seeds, order by lineage. Pure."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from hybridprune.report.records import STAGES, RunRecord

Key = tuple[str, str, str]


@dataclass(frozen=True)
class Stat:
    """Mean and sample standard deviation (ddof 1) over runs; a single run has no deviation."""

    mean: float
    std: float | None

    @staticmethod
    def of(values: Sequence[float]) -> Stat:
        """The statistic of at least one value."""
        return Stat(statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None)


@dataclass(frozen=True)
class Row:
    """One configuration over its seeds; ``stats`` holds the `figures` of its runs by their names.

    A figure that one of them does not have is missing: all runs of a row count in each figure.
    ``lineage``: the keys (stage, group, data digest) of the known ancestors and of the row, eldest first.
    """

    name: str
    method: str
    """Of its static cuts, the first one first; none where nothing was cut, or where nobody knows by what."""
    network: str
    dataset: str
    experiment: str
    lineage: tuple[Key, ...]
    family: tuple[int, str, str, str]
    runs: tuple[RunRecord, ...]
    stats: Mapping[str, Stat]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of its runs, rising."""
        return tuple(run.seed for run in self.runs)

    @property
    def cascade(self) -> bool:
        """Whether it is of cascades."""
        return self.runs[0].cascade

    @property
    def finite(self) -> bool:
        """Whether the networks of all its runs gave numbers on all test images."""
        return all(run.finite for run in self.runs)


TIMES = ("target_ms", "predicted_ms", "realised_ms")
"""Figures of a budget of time."""


def figures(run: RunRecord) -> dict[str, float]:
    """Figures that one run contributes to its row: counts as they are, accuracies, shares and rates as fractions.

    The main figures of stages sp and prune are those of the backbone with every block executed; of stage rl
    those of the routed network, gates counted. FLOPs = 2 x MACs. A run that is older than a figure is without it.
    """
    routed = run.stage == "rl"
    macs = run.routed_macs if routed else run.backbone_macs
    params = run.backbone_params + (run.gate_params if routed else 0)
    return {
        "accuracy": run.routed_accuracy if routed else run.always_on_accuracy,
        "flops": 2 * macs,
        "macs": macs,
        "dense_share": macs / run.dense_macs,
        "params": params,
        "compression": 1 - params / run.dense_params,
        **({} if run.effective_sparsity is None else {"effective_sparsity": run.effective_sparsity}),
        "routed_rate": run.routed_rate,
        "routed_accuracy": run.routed_accuracy,
        "routed_flops": 2 * run.routed_macs,
        "stored_bytes": run.stored_bytes,
        **{name: time for name in TIMES if (time := getattr(run, name)) is not None},
    }


def build_rows(records: Iterable[RunRecord]) -> list[Row]:
    """Group runs by stage, configuration and data, and order them by family, then parent before child.

    A run that only repeats another (equal seeds along the whole lineage) says nothing about the spread over
    seeds: of such runs the newest counts.
    """
    by_id = {record.run_id: record for record in records}
    groups: dict[Key, dict[tuple[object, ...], list[RunRecord]]] = defaultdict(dict)
    for record in sorted(by_id.values(), key=lambda r: (r.modified_ns, r.path)):
        lineage = _lineage(record, by_id)
        groups[record.key][(*(run.seed for run in lineage), lineage[-1].parent_id)] = lineage
    rows = {key: _row(list(lineages.values()), by_id) for key, lineages in groups.items()}

    def place(row: Row) -> tuple[object, ...]:
        # A parent's tuple is a prefix of its children's, so sorting walks each tree depth first.
        lineage = ((STAGES.index(key[0]), -rows[key].stats["macs"].mean, key) for key in row.lineage)
        return row.family, tuple(lineage)

    return sorted(rows.values(), key=place)


def _lineage(record: RunRecord, by_id: Mapping[str, RunRecord]) -> list[RunRecord]:
    """The run, its parent, and so on, as far as they are among the runs read."""
    lineage = [record]
    while (parent := by_id.get(lineage[-1].parent_id or "")) is not None and parent not in lineage:
        lineage.append(parent)
    return lineage


def _row(lineages: list[list[RunRecord]], by_id: Mapping[str, RunRecord]) -> Row:
    runs = sorted((lineage[0] for lineage in lineages), key=lambda run: (run.seed, run.path))
    run, longest = runs[0], max(lineages, key=len)
    each = [figures(run) for run in runs]
    shared = [name for name in each[0] if all(name in one for one in each)]
    return Row(
        name=_name(longest, [by_id[member] for member in longest[0].members if member in by_id]),
        method=", ".join(dict.fromkeys(run.method for run in reversed(longest) if run.method)),
        network=run.network,
        dataset=run.dataset,
        experiment=", ".join(sorted({run.experiment for run in runs})),
        lineage=tuple(run.key for run in reversed(longest)),
        # A cascade stands with the network that its dearest member descends from.
        family=(run.dense_macs, longest[-1].network, run.dataset, run.dataset_digest),
        runs=tuple(runs),
        stats={name: Stat.of([one[name] for one in each]) for name in shared},
    )


def _name(lineage: list[RunRecord], members: Sequence[RunRecord]) -> str:
    run, eldest = lineage[0], lineage[-1]
    if run.stage != "rl":
        return {"sp": "without pruning", "prune": "static only"}[run.stage]
    cut = any(each.stage == "prune" for each in (*lineage, *members))
    cut_by_unknown = eldest.parent_id is not None and run.backbone_params < run.dense_params
    return "static + dynamic" if cut or cut_by_unknown else "dynamic only"
