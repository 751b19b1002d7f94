from __future__ import annotations

import json
import shlex
from pathlib import Path

from hybridprune.report.html.provenance import provenance
from hybridprune.report.records import read_run
from tests.report.run_folders import result, write


def test_origin_is_what_the_result_says(tmp_path: Path) -> None:
    data = result("prune", "p", "s", seed=3, config={"lr": 0.1, "checkpoint_file": None}, model_sha256="abc")
    data["parent"]["path"] = "results/my sp"
    path = write(tmp_path / "a run", data)
    (path.parent / "config.json").write_text("{}")
    origin = provenance(read_run(path), data)
    assert (origin.seed, origin.weights, origin.parent) == (3, "abc", "results/my sp")
    assert origin.finished == "2023-11-14 22:13 UTC" and origin.epochs == "12, epoch 11 selected"
    assert origin.config == (("lr", "0.1"), ("checkpoint_file", "null"))
    assert origin.versions == "hybridprune 0.1.0, torch 2, python 3"
    assert shlex.split(origin.command) == [
        "hybridprune", "prune", "--config_path", str(path.parent / "config.json"),
        "--checkpoint_file", "results/my sp",
    ]  # fmt: skip


def test_a_budget_and_the_alpha_it_took(tmp_path: Path) -> None:
    data = result("rl", "r")
    path = write(tmp_path / "run", data)
    target = {"macs": 2e9, "validation_macs": 1.98e9, "price": 0.12345}
    shown = "4.0000 GFLOPs, 99.0% of it on validation"
    for each, budget in (
        (target, f"{shown}, final alpha 0.1235"),
        ({**target, "price": None}, shown),
        ({"macs": 2e9, "validation_macs": 1.98e9}, shown),
        (None, ""),
    ):
        assert provenance(read_run(path), {**data, "target": each}).budget == budget


def test_the_precision_of_training_and_figures(tmp_path: Path) -> None:
    data = result("rl", "r")
    path = write(tmp_path / "run", data)
    for record, shown in (
        ({"training": "fp32", "tf32": True, "figures": "fp32"}, "training fp32 with TF32, figures fp32"),
        ({"training": "bf16", "tf32": False, "figures": "fp32"}, "training bf16, figures fp32"),
        (None, ""),
    ):
        assert provenance(read_run(path), {**data, "precision": record}).precision == shown


def test_averaged_weights_are_said_to_be_such(tmp_path: Path) -> None:
    data = result("sp", "r")
    path = write(tmp_path / "run", data)
    assert provenance(read_run(path), data).epochs == "12, epoch 11 selected"
    assert provenance(read_run(path), {**data, "selected_averaged": True}).epochs == "12, averages of epoch 11 selected"


def test_little_is_enough(tmp_path: Path) -> None:
    data = result("rl", "r")
    path = write(tmp_path / "run", data)
    for key in ("epochs", "selected_epoch", "seconds", "versions", "hardware", "config", "parent"):
        del data[key]
    origin = provenance(read_run(path), json.loads(json.dumps(data)))
    assert origin.command == origin.versions == origin.epochs == origin.seconds == "" and origin.config == ()
