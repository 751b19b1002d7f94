"""A network that gives no numbers on some images: its run fails, or says so wherever it is shown."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hybridprune.commands.finished_run import FinishedRun
from hybridprune.data import Batch
from hybridprune.engine import evaluate
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.report.records import read_run
from hybridprune.stages import prune, rl_prune, sp
from hybridprune.stages import result as ending
from hybridprune.stages.images import RunImages
from hybridprune.store.run_folder import RunFolder
from tests.cli.tiny_runs import STAGES, folder_of, run_here, stage

pytestmark = pytest.mark.usefixtures("few_sweeps")
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
@pytest.mark.parametrize(
    ("name", "more"), [("sp", ()), ("prune", ()), ("rl", ()), ("rl", ("--target_flops", "0.5"))], ids=str
)
def test_the_run_fails_on_its_validation_images(
    name: str, more: tuple[str, ...], results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for spoil, again in ((_classifier, ()), (_classifier, ("--resume",)), (_stem, ("--resume",))):
        _spoil(monkeypatch, name, spoil)
        done = stage(name, "--result_dir", results, "--exp_name", "spoilt", *more, *again)
        assert done.returncode == 1 and done.stdout == ""
        told = (
            r"failed: the network is not finite on some validation images; start anew with a lower --lr \(now .*\) and"
        )
        assert re.match(told, done.stderr.splitlines()[-1]), done.stderr
    assert not (folder_of(results, name, "spoilt") / "result.json").exists()


@pytest.mark.full
@pytest.mark.parametrize("name", STAGES)
def test_the_run_ends_with_a_result_if_only_test_images_are_concerned(
    name: str, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    test = RunImages.test

    def spoilt(images: RunImages) -> list[Batch]:
        return [dataclasses.replace(batch, images=batch.images * torch.nan) for batch in test(images)]

    monkeypatch.setattr(RunImages, "test", spoilt)
    done = stage(name, "--result_dir", results, "--exp_name", "spoilt")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ended, not finite on some images: ") and "finished" not in done.stdout
    assert "warning: the network is not finite on some test images" in done.stderr
    run = folder_of(results, name, "spoilt")
    (result,) = _strict(run / "result.json")
    for reading in ("always_on", "routed"):
        assert result["test"][reading]["loss"] is None and result["test"][reading]["accuracy"] == 0
        assert result["validation"][reading]["loss"] is not None
    assert not read_run(run / "result.json").finite and read_run(folder_of(results, name) / "result.json").finite

    shown = run_here("hybridprune.report", results / "spoilt", "--html", results / "page.html", "--gallery_images", 20)
    assert shown.returncode == 0, shown.stderr
    assert "not finite" in (results / "page.html").read_text()
    shown = run_here("hybridprune.report", results)
    assert sum("not finite" in line for line in shown.stdout.splitlines()) == 1
    load = FinishedRun.load

    def broken(arguments: argparse.Namespace) -> FinishedRun:
        found = load(arguments)
        with torch.no_grad():
            assert isinstance(found.net, GatedNetwork)
            found.net.backbone.classifier.bias[3] = torch.nan
        return found

    monkeypatch.setattr(FinishedRun, "load", broken)
    for command in ("hybridprune.evaluate", "hybridprune.sweep"):
        shown = run_here(command, run, "--device", "cpu")
        assert shown.returncode == 0, shown.stderr
    _strict(run / "sweep.json")


@pytest.mark.full
@pytest.mark.parametrize("name", STAGES)
def test_validation_that_is_never_finite_fails_the_run(
    name: str, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate.Evaluation, "loss", property(lambda self: float("nan")))
    done = stage(name, "--result_dir", results, "--exp_name", "spoilt")
    assert done.returncode == 1 and done.stdout == ""
    assert re.match(
        r"failed: the validation loss is not finite at epoch \d, the selected one; start anew with a lower --lr",
        done.stderr.splitlines()[-1],
    )
    assert "NaN or Inf" not in done.stderr
    run = folder_of(results, name, "spoilt")
    assert not (run / "result.json").exists()
    lines = _strict(run / "metrics.jsonl")
    assert [line["validation_loss"] for line in lines] == [None] * len(lines)
    assert RunFolder(run).read_metrics() == lines
