"""Rows to text: Markdown and LaTeX for people, CSV and JSON for programs (raw, full precision). Pure."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence

from hybridprune.errors import UserError
from hybridprune.report.rows import Row, Stat

CONVENTION = (
    "FLOPs = 2 x MACs of convolution and linear layers, rotations included. "
    "Rows without dynamic pruning: all blocks executed, without the gates. "
    "Dynamic rows and routed columns: the gates decide, and their cost counts. "
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
    ("Routed execution rate", "routed_rate", 1, 3),
    ("Routed accuracy %", "routed_accuracy", 100, 2),
    ("Routed GFLOPs", "routed_flops", 1e-9, None),
    ("Stored bytes", "stored_bytes", 1, 0),
)
HEAD = ["Row", "Network", "Dataset", *(column[0] for column in COLUMNS), "Seeds"]
ALIGN = "l" * 3 + "r" * (len(HEAD) - 3)
LATEX_ESCAPES = str.maketrans(
    {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}
    | {character: "\\" + character for character in "&%$#_{}"}
)


def render(rows: Sequence[Row], format: str) -> str:
    """Render rows as one of `FORMATS`; raises `UserError` on another name."""
    if format not in FORMATS:
        raise UserError(f"--format {format}: unknown; choose one of {', '.join(FORMATS)}")
    return FORMATS[format](rows)


def _text(stat: Stat, factor: float, decimals: int | None) -> str:
    mean = stat.mean * factor
    if decimals is None:
        decimals = max(0, 3 - math.floor(math.log10(mean))) if mean > 0 else 0
    deviation = "" if stat.std is None else f" ± {stat.std * factor:,.{decimals}f}"
    return f"{mean:z,.{decimals}f}{deviation}"


def title(row: Row) -> str:
    """A row's name, with its experiment if that has a name of its own."""
    return row.name if row.experiment == "default" else f"{row.name} ({row.experiment})"


def row_cells(row: Row) -> list[str]:
    """The texts of a row, under `HEAD`."""
    numbers = [_text(row.stats[figure], factor, decimals) for _, figure, factor, decimals in COLUMNS]
    seeds = f"{', '.join(map(str, row.seeds))} (n = {len(row.seeds)})"
    return [title(row), row.network, row.dataset, *numbers, seeds]


def _markdown(rows: Sequence[Row]) -> str:
    rule = [{"l": ":--", "r": "--:"}[side] for side in ALIGN]
    body = [[cell.replace("|", r"\|") for cell in row_cells(row)] for row in rows]
    lines = ["| " + " | ".join(cells) + " |" for cells in (HEAD, rule, *body)]
    return "\n".join([*lines, "", CONVENTION, ""])


def _latex(rows: Sequence[Row]) -> str:
    table = [[cell.translate(LATEX_ESCAPES) for cell in cells] for cells in (HEAD, *map(row_cells, rows))]
    head, *body = (" & ".join(cells) + r" \\" for cells in table)
    caption = rf"\caption{{{CONVENTION.translate(LATEX_ESCAPES)}}}"
    start = ["% needs booktabs", r"\begin{table}", r"\centering", caption, rf"\begin{{tabular}}{{{ALIGN}}}"]
    end = [r"\bottomrule", r"\end{tabular}", r"\end{table}", ""]
    return "\n".join([*start, r"\toprule", head, r"\midrule", *body, *end])


def _raw(row: Row) -> dict[str, object]:
    """The flat record that CSV and JSON share; a deviation is None if n = 1."""
    stage, group, digest = row.lineage[-1]
    parent_group = row.lineage[-2][1] if len(row.lineage) > 1 else None
    record: dict[str, object] = {"name": row.name, "stage": stage, "experiment": row.experiment}
    record |= {"network": row.network, "dataset": row.dataset, "dataset_digest": digest}
    record |= {"group": group, "parent_group": parent_group, "n": len(row.seeds), "seeds": row.seeds}
    for name, stat in row.stats.items():
        record |= {name: stat.mean, f"{name}_std": stat.std}
    return record


def _json(rows: Sequence[Row]) -> str:
    document = {"convention": CONVENTION, "rows": [_raw(row) for row in rows]}
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _csv(rows: Sequence[Row]) -> str:
    """A comment line (``#``), a header, a line for each row; seeds have spaces between, None is empty."""
    records = [_raw(row) | {"seeds": " ".join(map(str, row.seeds))} for row in rows]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([*records[:1], *(record.values() for record in records)])
    return f"# {CONVENTION}\n{text.getvalue()}"


FORMATS = {"markdown": _markdown, "csv": _csv, "json": _json, "latex": _latex}
