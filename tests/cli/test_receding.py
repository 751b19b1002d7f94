"""main_prune.py --method rni: a run that is killed while importances recede, and what it leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import hybridprune
from hybridprune.engine.descent import Descent
from hybridprune.errors import Interrupted
from hybridprune.models.sigmoid_norm import SigmoidBatchNorm2d
from tests.cli.tiny_runs import folder_of, stage, weights
from tests.networks_and_images import random_images


@pytest.mark.full
def test_rni_from_scratch_interrupted_while_it_trains_towards_sparsity(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("--method", "rni", "--sparse_start", "scratch", "--sparsity_weight", "0.1", "--rni_shift", "2")

    def run(results: Path, *more: str) -> Path:
        parent = folder_of(finished, "sp")
        done = stage(
            "prune", "--checkpoint_file", parent, "--result_dir", results, "--sparse_epochs", "2", *flags, *more
        )
        assert done.returncode == (0 if "--resume" in more or results.name == "whole" else 130), done.stderr
        return folder_of(results, "prune")

    whole = run(tmp_path / "whole")
    step, steps, bounded = Descent.step, 0, 0

    def interrupt(self: Descent, *arguments: Any) -> None:
        nonlocal steps, bounded
        steps += 1
        if steps == 13:
            bounded = sum(isinstance(module, SigmoidBatchNorm2d) for module in self.net.modules())
            raise Interrupted("now")
        step(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Descent, "step", interrupt)
        run(tmp_path / "cut")
    assert bounded == 3  # the first of each block
    assert weights(run(tmp_path / "cut", "--resume")) == weights(whole)

    result = json.loads((whole / "result.json").read_text())
    assert 0.5 * result["dense"]["macs"] < result["macs"]["backbone"] <= 0.6 * result["dense"]["macs"]
    assert result["method"] == "rni" and result["sparse_epochs"] == 2
    net = hybridprune.load(whole).network
    norms = [type(module) for module in net.modules() if "Norm" in type(module).__name__]
    assert norms and set(norms) == {nn.BatchNorm2d}
    widths = [net.get_submodule(f"backbone.blocks.{i}.bn1").get_parameter("weight").shape[0] for i in range(3)]
    assert min(widths) >= 3 and sum(widths) < 4 + 8 + 16
    assert bool(torch.isfinite(net(random_images(2)).logits).all())
