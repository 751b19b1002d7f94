"""The one sentence that says what a bench found (pure)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hybridprune.commands.bench_rows import INT8, place


def sentence(tables: Sequence[Mapping[str, Any]], dense: float, run: float) -> str:
    """The speed of the deployed network over that of the dense one, at each batch size, and both accuracies.

    Each of the two counts in the form that is fastest for it, and the dense network is deployed as well where that
    helps it; int8, which costs accuracy, is left to the table.
    """
    speeds = ", ".join(_speed(table) for table in tables)
    return (
        f"Deployed, its speed over that of the dense network is {speeds} on this machine ({place(tables[0])}); "
        f"accuracy {dense:.2%} -> {run:.2%}."
    )


def _speed(table: Mapping[str, Any]) -> str:
    rows = [row for row in table["rows"] if row["form"] not in INT8.values()]
    best = min((row for row in rows if row["network"] == "deployed"), key=lambda row: row["median_ms"])
    base = min((row for row in rows if row["network"].startswith("dense")), key=lambda row: row["median_ms"])
    engine = best["form"] if best["form"] == base["form"] else f"{best['form']}; dense: {base['form']}"
    return f"{base['median_ms'] / best['median_ms']:.2f} x at batch {table['batch']} ({engine})"
