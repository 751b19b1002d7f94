"""What a stage could not read again after its training, it does not train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hybridprune.engine.fit import Fit
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.models.spec import NetworkSpec
from hybridprune.store.run_folder import RunFolder, RunSpec
from tests.cli.tiny_runs import STAGES, folder_of, stage


@pytest.mark.full
def test_a_network_that_cannot_be_loaded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    built, checked, result_dir, parent = NetworkSpec.build, RunFolder.check_weights, tmp_path / "results", ()

    def another(spec: NetworkSpec) -> GatedNetwork:
        net = built(spec)
        net.backbone.register_buffer("more", torch.zeros(1))
        return net

    def check(run: RunFolder, spec: RunSpec, net: GatedNetwork) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(NetworkSpec, "build", another)
            checked(run, spec, net)

    def trains(*_: Any) -> None:
        raise AssertionError("trained first")

    for name in STAGES:
        here = ("--result_dir", result_dir, *parent)
        with monkeypatch.context() as patched:
            patched.setattr(RunFolder, "check_weights", check)
            patched.setattr(Fit, "__call__", trains)
            failed = stage(name, *here, "--exp_name", "broken")
        assert failed.returncode == 1 and "the network cannot be saved and loaded again" in failed.stderr, failed.stderr
        done = stage(name, *here, *(("--epochs", 1) if name != "prune" else ("--epochs_start", 0, "--epochs_end", 0)))
        assert done.returncode == 0, done.stderr
        parent = ("--checkpoint_file", folder_of(result_dir, name))
