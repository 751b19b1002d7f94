"""Latencies of a row: those of its runs that may be averaged, and the few that the table shows. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hybridprune.report.bench import Measurement
from hybridprune.report.rows import Row, Stat

EXPORTED = ("onnx", "int8", "openvino", "openvino_int8")
"""Forms in which the dense network is the deployed one: exporters fold BatchNorm, and that is all there is to do."""
OTHER_ACCURACY = ("int8", "openvino_int8")
"""Forms that are not shown in the place of the network whose accuracy stands beside them."""


@dataclass(frozen=True)
class Speed:
    """One network in one form, batch size and place: statistics over those of a row's runs that measured it."""

    place: str
    batch: int
    network: str
    form: str
    runs: int
    median_ms: Stat
    images_per_second: Stat
    predicted_speedup: Stat | None
    realised_speedup: Stat | None

    @property
    def setting(self) -> tuple[int, str, str]:
        """The setting that points of a plot share: batch, form, place."""
        return self.batch, self.form, self.place

    @property
    def realised_share(self) -> float | None:
        """The realised speed-up over the predicted one."""
        if self.predicted_speedup is None or self.realised_speedup is None:
            return None
        return self.realised_speedup.mean / self.predicted_speedup.mean


def average(runs: Iterable[Sequence[Measurement]]) -> list[Speed]:
    """The mean of several runs' latencies, taken together where place, batch, network and form agree."""
    groups: dict[tuple[str, int, str, str], list[Measurement]] = defaultdict(list)
    for measured in runs:
        for m in measured:
            groups[m.place, m.batch, m.network, m.form].append(m)
    return [
        Speed(
            *key,
            runs=len(same),
            median_ms=Stat.of([m.median_ms for m in same]),
            images_per_second=Stat.of([m.images_per_second for m in same]),
            predicted_speedup=_known([m.predicted_speedup for m in same]),
            realised_speedup=_known([m.realised_speedup for m in same]),
        )
        for key, same in groups.items()
    ]


def _known(values: Sequence[float | None]) -> Stat | None:
    known = [value for value in values if value is not None]
    return Stat.of(known) if known else None


@dataclass(frozen=True, order=True)
class Setting:
    """A column: what all of its figures have in common."""

    batch: int
    place: str
    deployed: bool
    """The deployed network; else the one that the row's accuracy is of, in PyTorch."""


def deployed_name(stage: str) -> str:
    """The deployed network whose accuracy a row of ``stage`` has: that of stage 1 is read with every block executed."""
    return "dense deployed" if stage == "sp" else "deployed"


def of_row(row: Row) -> list[tuple[bool, Speed]]:
    """The speeds of the network that the row's accuracy is of, and whether it is deployed."""
    stage = row.lineage[-1][0]
    own, deployed = "dense" if stage == "sp" else stage, deployed_name(stage)
    found = []
    for speed in average(run.bench for run in row.runs):
        if speed.network in (own, deployed):
            exported = own == "dense" and speed.form in EXPORTED
            found.append((exported or speed.network == deployed, speed))
    return found


def shown(row: Row) -> dict[Setting, Speed]:
    """The latencies that the table shows: the own network in eager form, the deployed one in its fastest form.

    Of the forms, those of most runs count, and none that costs accuracy.
    """
    found: dict[Setting, Speed] = {}
    for deployed, speed in of_row(row):
        if speed.form in OTHER_ACCURACY if deployed else speed.form != "eager":
            continue
        setting = Setting(speed.batch, speed.place, deployed)
        known = found.get(setting)
        if known is None or (-speed.runs, speed.median_ms.mean) < (-known.runs, known.median_ms.mean):
            found[setting] = speed
    return found
