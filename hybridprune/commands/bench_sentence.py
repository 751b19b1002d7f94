"""The sentences that say what a bench found (pure)."""

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


def warning(tables: Sequence[Mapping[str, Any]]) -> str | None:
    """The batch sizes at which gates cost more time than they save; None if there is no such.

    The deployed network against the network without gates that it comes from, of a cascade its dearest member, each in
    the form that is fastest for it.
    """
    found = [text for table in tables if (text := _without_gates(table)) is not None]
    return f"Without gates the network is faster: {', '.join(found)}." if found else None


def _without_gates(table: Mapping[str, Any]) -> str | None:
    rows = _in_fp32(table)
    if not {"prune", "rl"} <= {row["network"] for row in rows}:
        return None
    best, base, alone = (_fastest(rows, network) for network in ("deployed", "dense", "prune"))
    if alone["median_ms"] >= best["median_ms"]:
        return None
    return f"{base['median_ms'] / alone['median_ms']:.2f} x at batch {table['batch']} ({alone['form']})"


def _speed(table: Mapping[str, Any]) -> str:
    rows = _in_fp32(table)
    best, base = _fastest(rows, "deployed"), _fastest(rows, "dense")
    engine = best["form"] if best["form"] == base["form"] else f"{best['form']}; dense: {base['form']}"
    return f"{base['median_ms'] / best['median_ms']:.2f} x at batch {table['batch']} ({engine})"


def _in_fp32(table: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [row for row in table["rows"] if row["form"] not in INT8.values()]


def _fastest(rows: Sequence[Mapping[str, Any]], network: str) -> Mapping[str, Any]:
    return min((row for row in rows if row["network"].startswith(network)), key=lambda row: row["median_ms"])
