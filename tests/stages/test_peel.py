"""Stage 2 by peel and adapruner: widths, budget and effective sparsity of real runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import hybridprune
from hybridprune.measure.effective import count_weights
from hybridprune.models.edits import ResizeEdit
from hybridprune.models.spec import NetworkSpec
from hybridprune.stages import prune, sp
from hybridprune.store.run_folder import RunFolder
from tests.cli.tiny_runs import DIGITS, OWN

WIDTH = 16
SMALL = (*DIGITS, "--width", str(WIDTH), "--max_train_samples", "100")


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("peel")
    sp.main([*SMALL, *OWN["sp"], "--epochs", "1", "--result_dir", str(results)])
    return only_run(results)


def only_run(results: Path) -> Path:
    (run,) = (path for path in (results / "default").iterdir() if path.is_dir())
    return run


def result_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text())


def widths(run: Path) -> dict[str, int]:
    """Outputs of each convolution."""
    network = hybridprune.load(run).network
    return {n: m.out_channels for n, m in network.backbone.named_modules() if isinstance(m, nn.Conv2d)}


@pytest.mark.full
@pytest.mark.parametrize("method", ["peel", pytest.param("adapruner", marks=pytest.mark.full)])
def test_widths_are_multiples_and_the_budget_is_spent(method: str, parent: Path, tmp_path: Path) -> None:
    flags = ("--method", method, "--use_out_dependencies", "--target_flops", "0.5", "--round_to", "4")
    epochs = ("--sparse_epochs", "1", "--epochs_start", "0", "--epochs_end", "0", "--sparsity_weight", "0.01")
    where = ("--checkpoint_file", str(parent), "--result_dir", str(tmp_path))
    prune.main([*SMALL, *OWN["prune"], *where, *flags, *epochs])
    run = only_run(tmp_path)
    result = result_of(run)
    assert result["method"] == method
    # The widest group is the first stage's stream: no step of 4 of 16 channels is more than a quarter of the network.
    assert 0.25 < result["macs"]["backbone"] / result["dense"]["macs"] <= 0.5
    found = widths(run)
    assert all(width % 4 == 0 and width >= 4 for width in found.values())
    assert found["conv"] == found["blocks.0.conv2"] < WIDTH

    edits = RunFolder(run).read_spec().network.edits
    assert {edit.layer for edit in edits if isinstance(edit, ResizeEdit)} >= {"backbone.blocks.0.conv1"}
    dense = NetworkSpec("resnet", 8, WIDTH, 10).build().backbone
    small = hybridprune.load(run).network.backbone
    assert result["effective_sparsity"] == pytest.approx(1 - count_weights(small) / count_weights(dense))
    assert result_of(parent)["effective_sparsity"] == 0
