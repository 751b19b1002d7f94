"""What a safetensors file keeps of a module beside its tensors, and what is checked before a training."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hybridprune.errors import RunFailed, UserError
from hybridprune.models.spec import NetworkSpec
from hybridprune.store.run_folder import RunFolder
from hybridprune.store.weights import load_weights, read_tensors, save_weights
from tests.store.run_folders import SPEC


class Versioned(nn.Linear):
    """A layer that reads its own version only, as some of torchvision's networks do."""

    _version = 2

    def _load_from_state_dict(self, *args: Any) -> None:  # type: ignore[override]
        if args[2].get("version") != 2:
            raise ValueError(f"version {args[2].get('version')}, not 2")
        super()._load_from_state_dict(*args)


def test_versions_of_modules_go_through_a_file(tmp_path: Path) -> None:
    net, fresh = nn.Sequential(Versioned(2, 2), nn.BatchNorm1d(2)), nn.Sequential(Versioned(2, 2), nn.BatchNorm1d(2))
    save_weights(net, tmp_path / "new.safetensors")
    found = read_tensors(tmp_path / "new.safetensors")
    assert found._metadata == {"": {"version": 1}, "0": {"version": 2}, "1": {"version": 2}}  # type: ignore[attr-defined]
    load_weights(fresh, tmp_path / "new.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), fresh.parameters(), strict=True))
    # Files from before they were kept hold what is the present version.
    save_file(load_file(tmp_path / "new.safetensors"), tmp_path / "old.safetensors")
    load_weights(fresh, tmp_path / "old.safetensors")
    Versioned._version = 3
    try:
        save_weights(net, tmp_path / "other.safetensors")
    finally:
        Versioned._version = 2
    with pytest.raises(ValueError, match="version 3, not 2"):
        load_weights(fresh, tmp_path / "other.safetensors")


@pytest.mark.parametrize("versions", ["{", "[1]", '{"0": "two"}'])
def test_broken_versions_are_named(versions: str, tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(1)}, tmp_path / "broken.safetensors", {"versions": versions})
    with pytest.raises(UserError, match=r"broken\.safetensors: truncated or not"):
        read_tensors(tmp_path / "broken.safetensors")


def test_a_network_of_torchvision_with_versions_can_be_loaded_again(tmp_path: Path) -> None:
    net = NetworkSpec("torchvision:mnasnet0_5", 8, 4, 3)
    with torch.random.fork_rng(devices=[]):
        RunFolder(tmp_path).check_weights(dataclasses.replace(SPEC, network=net), net.build())


def test_what_is_no_tensor_is_refused(tmp_path: Path) -> None:
    class Noted(nn.Linear):
        def get_extra_state(self) -> str:
            return "a note"

        def set_extra_state(self, state: object) -> None:
            pass

    with pytest.raises(UserError, match=r"cannot hold _extra_state, a str"):
        save_weights(Noted(1, 1), tmp_path / "noted.safetensors")
    assert not any(tmp_path.iterdir())


def test_a_network_of_other_tensors_than_its_specification_is_not_trained(tmp_path: Path) -> None:
    net = SPEC.network.build()
    RunFolder(tmp_path, writes=False).check_weights(SPEC, nn.Linear(1, 1))
    assert not any(tmp_path.iterdir())
    RunFolder(tmp_path).check_weights(SPEC, net)
    net.backbone.more = nn.Parameter(torch.zeros(1))  # type: ignore[assignment]
    with pytest.raises(RunFailed, match=r"cannot be saved and loaded again .*backbone\.more is \[1\], the network has"):
        RunFolder(tmp_path).check_weights(SPEC, net)
