"""Finished run folders made by hand, for the report's tests."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DENSE_PARAMS, DENSE_MACS = 400_000, 50_000_000


def result(stage: str, run_id: str, parent_id: str | None = None, **changes: Any) -> dict[str, Any]:
    """A complete ``result.json``; ``changes`` replace values by dotted names written with ``__``."""
    share = 1.0 if stage == "sp" else 0.5
    accuracy = {"sp": 0.75, "prune": 0.7, "rl": 0.72}[stage]
    macs = int(DENSE_MACS * share)
    split = {
        "images": 1000,
        "always_on": {"accuracy": accuracy, "loss": 1.0},
        "routed": {
            "accuracy": accuracy - 0.125,
            "loss": 1.1,
            "expected_macs": macs * 0.75,
            "mean_rate": 0.7,
            "block_rates": [1.0, 0.4],
        },
    }
    data: dict[str, Any] = {
        "format": 1, "stage": stage, "run_id": run_id, "exp_name": "default", "seed": 0,
        "group": f"{stage}-group",
        "dataset": {"name": "tree", "digest": "d1", "classes": 100},
        "network": {"name": "resnet", "label": "resnet32-w16"},
        "params": {"backbone": int(DENSE_PARAMS * share), "gates": 3000},
        "macs": {"backbone": macs, "gates": 12_000},
        "dense": {"params": DENSE_PARAMS, "macs": DENSE_MACS},
        "effective_sparsity": 0.0 if stage == "sp" else 0.625,
        "stored_bytes": 1_900_000, "test": split, "validation": split,
        "epochs": 12, "selected_epoch": 11, "seconds": 1234.5,
        "versions": {"hybridprune": "0.1.0", "torch": "2", "python": "3"},
        "hardware": {"cpu": "any", "threads": 2, "device": "cpu"}, "config": {},
        "parent": None if parent_id is None else {"path": "elsewhere", "run_id": parent_id},
    }  # fmt: skip
    if stage == "prune":
        data["method"] = "fisher-tucker"
    data = json.loads(json.dumps(data))  # "test" and "validation" shared their parts
    for dotted, value in changes.items():
        *path, last = dotted.split("__")
        target = data
        for key in path:
            target = target[key]
        target[last] = value
    return data


def write(folder: Path, data: dict[str, Any], age: int = 0) -> Path:
    """Write a run folder whose ``result.json``, returned, is ``age`` seconds old on a fixed clock."""
    folder.mkdir(parents=True)
    path = folder / "result.json"
    path.write_text(json.dumps(data))
    os.utime(path, (1_700_000_000 - age, 1_700_000_000 - age))
    return path


def write_lineage(root: Path, seeds: tuple[int, ...] = (0,), accuracy: tuple[float, ...] = ()) -> None:
    """Stages 1 to 3 for every seed; ``accuracy`` sets the main figures of stage 2, seed by seed."""
    for index, seed in enumerate(seeds):
        prune: dict[str, Any] = {"test__always_on__accuracy": accuracy[index]} if accuracy else {}
        write(root / "c" / f"sp-{seed}", result("sp", f"s{seed}", seed=seed))
        write(root / "b" / f"prune-{seed}", result("prune", f"p{seed}", f"s{seed}", seed=seed, **prune))
        write(root / "a" / f"rl-{seed}", result("rl", f"r{seed}", f"p{seed}", seed=seed))


def write_bench(folder: Path, ms: Mapping[tuple[str, str], float], dense: float = 10.0, **table: Any) -> None:
    """Add a table to a run's ``bench.json``: median ms of each network and form, beside ``dense`` of any form."""
    path = folder / "bench.json"
    tables = json.loads(path.read_text()) if path.is_file() else []
    rows = [
        {"network": network, "form": form, "median_ms": each, "images_per_second": 1000 / each,
         "predicted_speedup": 2.0, "realised_speedup": dense / each}
        for (network, form), each in ms.items()
    ]  # fmt: skip
    path.write_text(json.dumps([*tables, {"batch": 1, "device": "cpu", "threads": 2, **table, "rows": rows}]))
