"""Rows to text: Markdown and LaTeX for people, CSV and JSON for programs (raw, full precision). Pure."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from hybridprune import tables
from hybridprune.errors import UserError
from hybridprune.report.rows import Row, Stat
from hybridprune.report.speed import Setting, Speed, of_row, shown

CONVENTION = (
    "FLOPs = 2 x MACs of convolution and linear layers, rotations included. "
    "Rows without dynamic pruning: all blocks executed, without the gates. "
    "Dynamic rows and routed columns: the gates decide, and their cost counts. "
    "Effective sparsity: share of the dense network's weights that are on no live path from input to output. "
    "Test set; mean ± sample standard deviation over n seeds."
)
# Heading, name of the figure, factor to the unit shown, decimals (None: four significant digits).
COLUMNS = (
    ("Accuracy %", "accuracy", 100, 2),
    ("GFLOPs", "flops", 1e-9, None),
    ("GMACs", "macs", 1e-9, None),
    ("Dense FLOPs %", "dense_share", 100, 2),
    ("Parameters", "params", 1, 0),
    ("Compression %", "compression", 100, 2),
    ("Effective sparsity %", "effective_sparsity", 100, 2),
    ("Routed execution rate", "routed_rate", 1, 3),
    ("Routed accuracy %", "routed_accuracy", 100, 2),
    ("Routed GFLOPs", "routed_flops", 1e-9, None),
    ("Stored bytes", "stored_bytes", 1, 0),
)
TIMES = (
    ("Target ms", "target_ms", 1, None),
    ("Predicted ms", "predicted_ms", 1, None),
    ("Realised ms", "realised_ms", 1, None),
)
"""Columns of budgets of time, where a row has one."""
LEFT = ("Row", "Method", "Network", "Dataset")
LATENCY = (
    "Latency: median ms of a batch and, in brackets, the realised speed-up over the dense network in the same form, "
    "over the runs that were measured. Eager: the network of the row's accuracy in PyTorch. Deployed: the same after "
    "deployment, in its fastest form but int8."
)
RAW_LATENCY = (
    "Latency: own is the network of the row's accuracy, deployed the same after deployment; form, batch size; runs "
    "measured (n), median ms of a batch, realised speed-up over the dense network in the same form."
)
LATEX_ESCAPES = str.maketrans(
    {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}
    | {character: "\\" + character for character in "&%$#_{}"}
)


def render(rows: Sequence[Row], format: str) -> str:
    """Render rows as one of `FORMATS`; raises `UserError` on another name."""
    if format not in FORMATS:
        raise UserError(f"--format {format}: unknown; choose one of {', '.join(FORMATS)}")
    return FORMATS[format](rows)


def _text(stat: Stat | None, factor: float, decimals: int | None) -> str:
    if stat is None:  # runs older than the figure
        return ""
    mean = stat.mean * factor
    if decimals is None:
        decimals = max(0, 3 - math.floor(math.log10(mean))) if mean > 0 else 0
    deviation = "" if stat.std is None else f" ± {stat.std * factor:,.{decimals}f}"
    return f"{mean:z,.{decimals}f}{deviation}"


def title(row: Row) -> str:
    """A row's name, with its experiment if that has a name of its own, and whether its networks give numbers."""
    name = row.name if row.experiment == "default" else f"{row.name} ({row.experiment})"
    return name if row.finite else f"{name}, not finite"


@dataclass(frozen=True)
class Table:
    """The texts of a table for people."""

    head: list[str]
    align: str
    """``l`` or ``r`` for each column."""
    body: list[list[str]]
    note: str


def table(rows: Sequence[Row]) -> Table:
    """Rows as texts; latency columns are those that any row has a figure for."""
    speeds = [shown(row) for row in rows]
    settings = sorted({setting for each in speeds for setting in each})
    places = _places(setting.place for setting in settings)
    columns = _columns(rows)
    head = [*LEFT, *(column[0] for column in columns), *(_heading(each, places) for each in settings), "Seeds"]
    body = []
    for row, found in zip(rows, speeds, strict=True):
        numbers = [_text(row.stats.get(figure), factor, decimals) for _, figure, factor, decimals in columns]
        times = [_speed_text(found[each], each, row) if each in found else "" for each in settings]
        seeds = f"{', '.join(map(str, row.seeds))} (n = {len(row.seeds)})"
        body.append([title(row), row.method, row.network, row.dataset, *numbers, *times, seeds])
    return Table(head, "l" * len(LEFT) + "r" * (len(head) - len(LEFT)), body, _note(places, LATENCY))


def _columns(rows: Sequence[Row]) -> Sequence[tuple[str, str, float, int | None]]:
    return (*COLUMNS, *TIMES) if any(TIMES[0][1] in row.stats for row in rows) else COLUMNS


def _heading(setting: Setting, places: Sequence[str]) -> str:
    kind = "Deployed" if setting.deployed else "Eager"
    return f"{kind} ms, batch {setting.batch}{_mark(places, setting.place)} (speed-up)"


def _places(places: Iterable[str]) -> list[str]:
    return sorted(set(places))


def _mark(places: Sequence[str], place: str) -> str:
    """What tells columns of several places apart."""
    return f" [{places.index(place) + 1}]" if len(places) > 1 else ""


def _note(places: Sequence[str], latency: str) -> str:
    if not places:
        return CONVENTION
    if len(places) == 1:
        return f"{CONVENTION} {latency} Measured on {places[0]}."
    listed = "; ".join(f"{_mark(places, place).strip()} {place}" for place in places)
    return f"{CONVENTION} {latency} Measured in different places, which are not averaged: {listed}."


def _speed_text(speed: Speed, setting: Setting, row: Row) -> str:
    more = [] if speed.realised_speedup is None else [f"{_text(speed.realised_speedup, 1, 2)}x"]
    if setting.deployed:
        more.append(speed.form)
    if speed.runs < len(row.runs):
        more.append(f"n = {speed.runs}")
    time = _text(speed.median_ms, 1, None)
    return f"{time} ({', '.join(more)})" if more else time


def _markdown(rows: Sequence[Row]) -> str:
    made = table(rows)
    return f"{tables.Table(made.head, made.align, made.body).markdown()}\n\n{made.note}\n"


def _latex(rows: Sequence[Row]) -> str:
    made = table(rows)
    texts = [[cell.translate(LATEX_ESCAPES) for cell in cells] for cells in (made.head, *made.body)]
    head, *body = (" & ".join(cells) + r" \\" for cells in texts)
    caption = rf"\caption{{{made.note.translate(LATEX_ESCAPES)}}}"
    start = ["% needs booktabs", r"\begin{table}", r"\centering", caption, rf"\begin{{tabular}}{{{made.align}}}"]
    end = [r"\bottomrule", r"\end{tabular}", r"\end{table}", ""]
    return "\n".join([*start, r"\toprule", head, r"\midrule", *body, *end])


def _raw(row: Row, latencies: Mapping[str, Speed]) -> dict[str, object]:
    """The flat record that CSV and JSON share; a deviation is None if n = 1."""
    stage, group, digest = row.lineage[-1]
    parent_group = row.lineage[-2][1] if len(row.lineage) > 1 else None
    record: dict[str, object] = {"name": row.name, "stage": stage, "method": row.method, "experiment": row.experiment}
    record |= {"network": row.network, "dataset": row.dataset, "dataset_digest": digest}
    record |= {"group": group, "parent_group": parent_group, "n": len(row.seeds), "seeds": row.seeds}
    record["not_finite"] = sum(not run.finite for run in row.runs)
    for _, name, _, _ in _columns([row]):
        stat = row.stats.get(name)
        record |= {name: stat and stat.mean, f"{name}_std": stat and stat.std}
    for name, speed in latencies.items():
        record |= {f"{name}_n": speed.runs, f"{name}_ms": speed.median_ms.mean, f"{name}_ms_std": speed.median_ms.std}
        gain = speed.realised_speedup
        record |= {f"{name}_speedup": gain and gain.mean, f"{name}_speedup_std": gain and gain.std}
    return record


def _records(rows: Sequence[Row]) -> tuple[list[dict[str, object]], str]:
    """All rows with the same keys, None where a row has nothing, and what has to be said of them.

    Latencies: ``own_`` or ``deployed_``, the form, ``_b`` and the batch size and, of several places, ``_at`` and which.
    """
    speeds = [of_row(row) for row in rows]
    places = _places(speed.place for each in speeds for _, speed in each)

    def name(deployed: bool, speed: Speed) -> str:
        at = f"_at{places.index(speed.place) + 1}" if len(places) > 1 else ""
        return f"{'deployed' if deployed else 'own'}_{speed.form}_b{speed.batch}{at}"

    records = [_raw(row, {name(*each): each[1] for each in found}) for row, found in zip(rows, speeds, strict=True)]
    keys = dict.fromkeys(key for record in records for key in record)
    return [{key: record.get(key) for key in keys} for record in records], _note(places, RAW_LATENCY)


def _json(rows: Sequence[Row]) -> str:
    records, note = _records(rows)
    document = {"convention": note, "rows": records}
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _csv(rows: Sequence[Row]) -> str:
    """A comment line (``#``), a header, a line for each row; seeds have spaces between, None is empty."""
    raw, note = _records(rows)
    records = [record | {"seeds": " ".join(map(str, row.seeds))} for record, row in zip(raw, rows, strict=True)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([*records[:1], *(record.values() for record in records)])
    return f"# {note}\n{text.getvalue()}"


FORMATS = {"markdown": _markdown, "csv": _csv, "json": _json, "latex": _latex}
