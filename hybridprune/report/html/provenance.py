"""The origin of a run's figures: versions, hardware, hashes, and the command that repeats it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hybridprune.config import SUBCOMMANDS
from hybridprune.report.records import RunRecord


@dataclass(frozen=True)
class Provenance:
    """One run's origin; a field is empty where result.json does not say."""

    folder: str
    seed: int
    finished: str
    """When, in UTC."""
    epochs: str
    seconds: str
    budget: str
    """Stage 3's, and the alpha that it ended with."""
    weights: str
    """sha256 of the selected weights."""
    parent: str
    parent_weights: str
    images: str
    """Digest of the data set."""
    command: str
    config: tuple[tuple[str, str], ...]
    versions: str
    hardware: str
    precision: str


def provenance(run: RunRecord, result: Mapping[str, Any]) -> Provenance:
    """The origin of ``run``, as its ``result.json`` tells it."""
    parent = result.get("parent")
    parent = parent if isinstance(parent, dict) else {}
    config = result.get("config")
    epochs, selected = result.get("epochs"), result.get("selected_epoch")
    averages = "averages of " if result.get("selected_averaged") is True else ""
    chosen = "" if selected is None else f", {averages}epoch {selected} selected"
    seconds = result.get("seconds")
    return Provenance(
        folder=str(run.path.parent),
        seed=run.seed,
        finished=datetime.fromtimestamp(run.modified_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M UTC"),
        epochs="" if epochs is None else f"{epochs}{chosen}",
        seconds=f"{seconds:,.0f} s" if isinstance(seconds, int | float) else "",
        budget=_budget(result.get("target")),
        weights=str(result.get("model_sha256", "")),
        parent=str(parent.get("path", "")),
        parent_weights=str(parent.get("model_sha256", "")),
        images=run.dataset_digest,
        command=_command(run, config, parent),
        config=tuple((key, json.dumps(value)) for key, value in config.items()) if isinstance(config, dict) else (),
        versions=_listed(result.get("versions")),
        hardware=_listed(result.get("hardware")),
        precision=_precision(result.get("precision")),
    )


def _command(run: RunRecord, config: Any, parent: Mapping[str, Any]) -> str:
    """The stage started from the stored configuration; nothing for runs that no stage made."""
    stored = run.path.parent / "config.json"
    if not isinstance(config, dict) or not stored.is_file():
        return ""
    words = ["hybridprune", SUBCOMMANDS[run.stage], "--config_path", str(stored)]
    if parent and config.get("checkpoint_file") is None:
        words += ["--checkpoint_file", str(Path(str(parent.get("path", ""))))]
    return shlex.join(words)


def _budget(target: Any) -> str:
    """What stage 3 aimed at; nothing for runs without a budget."""
    if not isinstance(target, dict):
        return ""
    price = target.get("price")
    reached = (
        f"{target['macs'] * 2 / 1e9:.4f} GFLOPs, {target['validation_macs'] / target['macs']:.1%} of it on validation"
    )
    return reached if price is None else f"{reached}, final alpha {price:.4g}"


def _precision(record: Any) -> str:
    """What training and figures were computed in; nothing for runs of older versions."""
    if not isinstance(record, dict):
        return ""
    trained, figures = (record.get(key, "unknown") for key in ("training", "figures"))
    return f"training {trained}{' with TF32' if record.get('tf32') else ''}, figures {figures}"


def _listed(record: Any) -> str:
    return ", ".join(f"{key} {value}" for key, value in record.items()) if isinstance(record, dict) else ""
