"""The commands with networks other than resnet."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.tiny_runs import assert_refused, run_here

DIGITS = (
    *("--dataset", "digits", "--resize", "16", "--max_train_samples", "100", "--bs", "20", "--num_workers", "0"),
    *("--device", "cpu", "--epochs", "1", "--lr", "0.05"),
)
NETWORKS = {
    "vgg11-w4": ("--network", "vgg", "--depth", "11", "--width", "4"),
    "preresnet8-w4": ("--network", "preresnet", "--depth", "8", "--width", "4"),
    "preresnet11-w2-bottleneck": ("--network", "preresnet", "--depth", "11", "--width", "2", "--bottleneck"),
    "pyramidnet8-w4-a6-shakedrop0.5": (
        *("--network", "pyramidnet", "--depth", "8", "--width", "4", "--pyramid_alpha", "6", "--shakedrop", "0.5"),
    ),
    "torchvision_resnet18": ("--network", "torchvision:resnet18"),
    "resnet8-w4-none": ("--network", "resnet", "--depth", "8", "--width", "4", "--gate", "none"),
}


@pytest.mark.full
@pytest.mark.parametrize(("label", "flags"), NETWORKS.items())
def test_a_short_run(label: str, flags: tuple[str, ...], tmp_path: Path) -> None:
    done = run_here("main_sp.py", *DIGITS, *flags)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "results" / "default" / f"digits-{label}-sp-seed0"
    result = json.loads((run / "result.json").read_text())
    gates = 2 if "preresnet8" in label or "pyramid" in label or "bottleneck" in label else 0
    routed = result["test"]["routed"]
    assert len(routed["block_rates"]) == gates and (result["params"]["gates"] > 0) == (gates > 0)
    if not gates:
        assert routed["mean_rate"] == 1 and routed["expected_macs"] == result["macs"]["backbone"]
    losses = [json.loads(line)["validation_loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 2 and "NaN" not in (run / "metrics.jsonl").read_text()
    evaluated = run_here("hybridprune.evaluate", run, "--device", "cpu")
    assert evaluated.returncode == 0, evaluated.stderr
    assert f"accuracy {routed['accuracy']:.4f}" in evaluated.stdout


@pytest.mark.full
@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("vgg11-w4", ("--network vgg", "no residual blocks", "use resnet, preresnet, pyramidnet")),
        ("resnet8-w4-none", ("--gate none", "--routing cascade")),
    ],
)
def test_the_gates_stage_wants_gates(label: str, words: tuple[str, ...], tmp_path: Path) -> None:
    made = run_here("main_sp.py", *DIGITS, *NETWORKS[label])
    assert made.returncode == 0, made.stderr
    parent = tmp_path / "results" / "default" / f"digits-{label}-sp-seed0"
    refused = run_here("main_rl_prune.py", *DIGITS, *NETWORKS[label], "--checkpoint_file", parent)
    assert_refused(refused, *words)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--network", "resnt"), ("--network resnt", "resnet, preresnet, pyramidnet, vgg, ", " or torchvision:NAME")),
        (("--network", "torchvision:resnet5"), ("torchvision:resnet5", "did you mean resnet50")),
        (("--network", "vgg"), ("--depth 32", "11, 16, 19")),
        (("--network", "resnet", "--shakedrop", "0.5"), ("--shakedrop 0.5", "use pyramidnet")),
        (("--network", "torchvision:squeezenet1_1", "--resize", "8"), ("--resize 8", "cannot take images")),
    ],
)
def test_mistakes(flags: tuple[str, ...], words: tuple[str, ...], tmp_path: Path) -> None:
    assert_refused(run_here("main_sp.py", *DIGITS, *flags), *words)
    assert not (tmp_path / "results").exists()


def test_a_plan_names_what_the_network_reads() -> None:
    plan = run_here("main_sp.py", *DIGITS, *NETWORKS["torchvision_resnet18"], "--dry-run")
    assert plan.returncode == 0 and plan.stdout.startswith("stage sp: torchvision:resnet18, 10 classes\n")
