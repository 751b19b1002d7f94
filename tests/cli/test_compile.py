"""``--compile`` for real: the stages train what they train without it, and go on where there is no compiler."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hybridprune.engine.compile_times import CompileTimes
from hybridprune.engine.compile_trial import Cost
from tests.cli.tiny_runs import DIGITS, OWN, SCRIPTS, folder_of
from tests.processes import run_forked

pytestmark = pytest.mark.full

STAGES = {
    "pruned": ("prune", "--kd_weight", "0.5"),
    "rollouts and their routes": (
        *("rl", "--batchnorm", "trained", "--rl_warmup", "0", "--target_flops", "0.55", "--epochs", "1"),
    ),
}


def train(which: str, name: str, *flags: str, **env: str) -> tuple[list[dict[str, Any]], str]:
    """The lines of metrics and the messages of a run called ``name`` in a process of its own."""
    options = (*DIGITS, *OWN[which], *flags, "--result_dir", "results", "--exp_name", name)
    # Else the compiler starts as many processes as there are cores, each of which imports torch.
    alone = {"TORCHINDUCTOR_COMPILE_THREADS": "1"}
    done = run_forked(SCRIPTS[which], *options, cwd=Path.cwd(), env=alone | env)
    assert done.returncode == 0, done.stderr
    lines = (folder_of(Path("results"), which, name) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines], done.stderr


needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")


@pytest.mark.exhaustive
@needs_compiler
@pytest.mark.parametrize("name", STAGES)
def test_a_compiled_stage_trains_what_it_trains_without(name: str, results: Path) -> None:
    which, *flags = STAGES[name]
    plain, _ = train(which, "plain", *flags)
    compiled, messages = train(which, "compiled", *flags, "--compile", TORCHINDUCTOR_CACHE_DIR="kernels")
    assert "left out" not in messages
    assert len(list(Path("kernels").rglob("*.so"))) > 10, "more than the probe's"
    assert len(compiled) == len(plain) > 1
    for one, other in zip(compiled[1:], plain[1:], strict=True):  # nothing is trained before the first
        for quantity in ("train_loss", "validation_loss"):
            assert one[quantity] == pytest.approx(other[quantity], rel=1e-3), (one["epoch"], quantity)


@pytest.mark.exhaustive
@needs_compiler
def test_what_pays_by_earlier_runs_is_compiled_on_the_way(results: Path) -> None:
    """Another network on this machine compiled at once, and its steps took next to no time."""
    how = {"precision": "fp32", "tf32": "False", "loss": "Supervised"}
    CompileTimes.of(nn.Linear(1, 1), torch.device("cpu"), **how).keep(((1,),), Cost(0.0, 0.1))
    plain, _ = train("sp", "plain", "--epochs", "4")
    auto, messages = train("sp", "auto", "--epochs", "4", "--compile", "auto", TORCHINDUCTOR_CACHE_DIR="kernels")
    tried, measured = (line for line in messages.splitlines() if line.startswith("compile auto: "))
    assert tried.endswith("s and to leave 10% of a step: compiling") and "compiling took" in measured
    assert len(list(Path("kernels").rglob("*.so"))) > 10, "more than the probe's"
    for one, other in zip(auto[1:], plain[1:], strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-3)


def test_without_a_compiler_a_stage_trains_all_the_same(results: Path) -> None:
    plain, _ = train("sp", "plain")
    alone, messages = train("sp", "alone", "--compile", PATH="", CXX="", TORCHINDUCTOR_CACHE_DIR="kernels")
    (line,) = [line for line in messages.splitlines() if "--compile" in line]
    assert line.startswith("warning: --compile is left out") and "ompiler" in line
    assert [line["validation_loss"] for line in alone] == [line["validation_loss"] for line in plain]
