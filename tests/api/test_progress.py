"""What takes long shows a bar on a terminal, and the bars change nothing."""

from __future__ import annotations

import io

import pytest
from torch import nn

import hybridprune
from hybridprune import progress_bar
from hybridprune.config import CutOptions, SparsityOptions
from tests.api.test_replaced_layers import QUICK, Plain, batches
from tests.deployment.networks import preferring
from tests.networks_and_images import random_images, random_net
from tests.test_progress_bar import on_terminal


def pruned(method: str, progress: bool = True) -> nn.Module:
    cut = CutOptions(refit_images=8)
    sparse = SparsityOptions(sparse_epochs=1)
    common = {"target_flops": 0.7, "curvature": QUICK, "sparsity": sparse, "fine_tune": 1.0, "lr": 1e-3}
    return hybridprune.prune(Plain().eval(), batches(), method=method, cut=cut, progress=progress, **common).module


SHOWN = {
    "fisher-tucker": ["factors", "decomposing", "refitting", "recalibration", "fine-tuning"],
    "taylor": ["taylor", "recalibration", "fine-tuning"],
    "slimming": ["sparse training", "fine-tuning"],
}


@pytest.mark.parametrize("method", SHOWN)
def test_prune(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_bar, "DELAY", 0.0)
    monkeypatch.setattr("sys.stderr", log := io.StringIO())
    expected = pruned(method).state_dict()
    assert log.getvalue() == ""
    for progress in (True, False):
        terminal = on_terminal(monkeypatch)
        found = pruned(method, progress).state_dict()
        assert all(found[name].equal(value) for name, value in expected.items())
        for each in SHOWN[method]:
            assert (f"{each}:" in terminal.getvalue()) == progress
        assert progress or terminal.getvalue() == ""


@pytest.mark.parametrize("progress", [True, False])
def test_deploy(progress: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    hybridprune.deploy(random_net(8), random_images(2), time=preferring("dense"), progress=progress)
    assert ("timing layers:" in terminal.getvalue()) == ("timing blocks:" in terminal.getvalue()) == progress
