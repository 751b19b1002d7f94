"""A network that gives no numbers on some images: its run ends with a result, which says so wherever it is shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hybridprune.engine import evaluate
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.report.records import read_run
from hybridprune.stages import prune, rl_prune, sp
from hybridprune.stages import result as ending
from hybridprune.store.run_folder import RunFolder
from tests.cli.tiny_runs import STAGES, folder_of, run_here, stage

MODULES = {"sp": sp, "prune": prune, "rl": rl_prune}


def _spoil(monkeypatch: pytest.MonkeyPatch, name: str, spoil: Callable[[GatedNetwork], None]) -> None:
    """Let ``spoil`` change the weights that the stage has selected."""

    def load_selected(net: GatedNetwork, run: RunFolder) -> None:
        ending.load_selected(net, run)
        with torch.no_grad():
            spoil(net)

    monkeypatch.setattr(MODULES[name], "load_selected", load_selected)


def _classifier(net: GatedNetwork) -> None:
    net.backbone.classifier.bias[3] = torch.nan


def _stem(net: GatedNetwork) -> None:
    net.backbone.bn.bias[0] = torch.inf


def _strict(path: Path) -> list[Any]:
    """The JSON texts in a file, which hold no NaN and no Infinity."""

    def constant(text: str) -> None:
        raise AssertionError(f"{path}: {text}")

    text = path.read_text()
    texts = text.splitlines() if path.suffix == ".jsonl" else [text]
    return [json.loads(each, parse_constant=constant) for each in texts]


@pytest.mark.full
@pytest.mark.parametrize("spoil", [_classifier, _stem])
@pytest.mark.parametrize(
    ("name", "more"), [("sp", ()), ("prune", ()), ("rl", ()), ("rl", ("--target_flops", "0.5"))], ids=str
)
def test_the_run_ends_with_a_result(
    name: str, more: tuple[str, ...], spoil: Callable[[GatedNetwork], None], results: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    _spoil(monkeypatch, name, spoil)
    done = stage(name, "--result_dir", results, "--exp_name", "spoilt", *more)
    assert done.returncode == 0, done.stderr
    for split in ("validation", "test"):
        assert f"warning: the network is not finite on some {split} images" in done.stderr
    run = folder_of(results, name, "spoilt")
    (result,) = _strict(run / "result.json")
    for split in ("validation", "test"):
        for reading in ("always_on", "routed"):
            assert result[split][reading]["loss"] is None and result[split][reading]["accuracy"] == 0
    assert not read_run(run / "result.json").finite and read_run(folder_of(results, name) / "result.json").finite

    shown = run_here("hybridprune.report", results / "spoilt", "--html", results / "page.html", "--gallery_images", 20)
    assert shown.returncode == 0, shown.stderr
    assert "not finite" in (results / "page.html").read_text()
    shown = run_here("hybridprune.report", results)
    assert sum("not finite" in line for line in shown.stdout.splitlines()) == 1
    for command in ("hybridprune.evaluate", "hybridprune.sweep"):
        shown = run_here(command, run, "--device", "cpu")
        assert shown.returncode == 0, shown.stderr
    _strict(run / "sweep.json")


@pytest.mark.full
@pytest.mark.parametrize("name", STAGES)
def test_validation_that_is_never_finite_still_selects(
    name: str, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate.Evaluation, "loss", property(lambda self: float("nan")))
    done = stage(name, "--result_dir", results, "--exp_name", "spoilt")
    assert done.returncode == 0, done.stderr
    run = folder_of(results, name, "spoilt")
    _strict(run / "result.json")
    lines = _strict(run / "metrics.jsonl")
    assert [line["validation_loss"] for line in lines] == [None] * len(lines)
    assert RunFolder(run).read_metrics() == lines
