"""Deployed networks in folders."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hybridprune
from hybridprune.deployment import Deployed, DeployedNetwork, Harden, deploy, load_deployed, save_deployed
from hybridprune.errors import UserError
from hybridprune.models.spec import NetworkSpec
from hybridprune.store.run_folder import RunSpec
from tests.damaged_json import damage, quickly
from tests.deployment.networks import SPECS, built, preferring
from tests.networks_and_images import batches_of, random_images

SIZE = 12


def run_of(network: NetworkSpec) -> RunSpec:
    return RunSpec("rl", "0", network, tuple("abcde"), SIZE, (0.5,) * 3, (0.25,) * 3, "digits", "0")


def made(network: NetworkSpec, form: str, harden: Harden | None = None) -> Deployed:
    images = random_images(6, SIZE)
    batches = batches_of(images, torch.zeros(6, dtype=torch.int64), 6)
    return deploy(built(network), images, harden=harden, validation=batches, time=preferring(form, "blend"))


HARDEN = Harden(never=0.2, always=0.8)
CASES = {
    "resnet, factored": ("output-sided", Harden(never=0.4, always=0.6, keep_state=True)),
    "resnet, ff1": ("dense", HARDEN),
    "preresnet, bottleneck, factored": ("two-sided", HARDEN),
    "pyramidnet, bottleneck, shakedrop": ("dense", None),
    "vgg, factored": ("dense", None),
}


@pytest.mark.parametrize(("name", "form", "harden"), [(name, *case) for name, case in CASES.items()], ids=CASES.keys())
@torch.no_grad()
def test_what_is_loaded_is_what_was_saved(name: str, form: str, harden: Harden | None, tmp_path: Path) -> None:
    deployed, images = made(SPECS[name], form, harden), random_images(5, SIZE, seed=1)
    save_deployed(deployed, run_of(SPECS[name]), tmp_path / "new" / "folder")
    module, spec = load_deployed(tmp_path / "new" / "folder")
    assert spec == run_of(SPECS[name])
    assert torch.equal(module(images), deployed.module(images))
    assert not module.training and not any(p.requires_grad for p in module.parameters())
    if isinstance(deployed.module, DeployedNetwork):
        assert isinstance(module, DeployedNetwork) and module.records() == deployed.module.records()
        assert harden is None or len(deployed.report.fixed) > 0
    assert (tmp_path / "new/folder/report.txt").read_text() == f"{deployed.report}\n"


def _edit(folder: Path, change: dict[str, Any]) -> None:
    record = json.loads((folder / "deploy.json").read_text())
    record["report"] |= change
    (folder / "deploy.json").write_text(json.dumps(record))


@torch.no_grad()
def test_broken_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"deploy\.json: not a deployed network"):
        load_deployed(tmp_path)
    network = SPECS["vgg, factored"]
    deployed = made(network, "dense")
    for change in (
        {"folded": {"features.bn1_1": "features.what"}},
        {"forms": {"features.conv1_1": {"chosen": "three-sided"}}},
        {"forms": {"features.bn1_1": {"chosen": "dense"}}},
        {"folded": 3},
    ):
        save_deployed(deployed, run_of(network), tmp_path)
        _edit(tmp_path, change)
        with pytest.raises(UserError, match=r"deploy\.json: not a deployed network"):
            load_deployed(tmp_path)
    save_deployed(deployed, run_of(network), tmp_path)
    _edit(tmp_path, {"forms": {}})
    with pytest.raises(UserError, match="checkpoint of another architecture"):
        load_deployed(tmp_path)
    (tmp_path / "deploy.json").write_text('{"format": 2}')
    with pytest.raises(UserError, match="format 2, this version reads 1"):
        load_deployed(tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("name", ["resnet, factored", "vgg, factored"])
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_folder_of_a_stranger(name: str, data: st.DataObject, tmp_path: Path) -> None:
    file = tmp_path / "deploy.json"
    if not file.is_file():
        save_deployed(made(SPECS[name], CASES[name][0], CASES[name][1]), run_of(SPECS[name]), tmp_path)
        (tmp_path / "whole.json").write_bytes(file.read_bytes())
    record = json.loads((tmp_path / "whole.json").read_text())
    kept = {"folded", "forms", "folded_inputs", "steps", "piece"}  # what is read again
    record["report"] = {key: value for key, value in record["report"].items() if key in kept}
    file.write_text(json.dumps(damage(record, data)))
    quickly(lambda: load_deployed(tmp_path))


@torch.no_grad()
def test_broken_steps(tmp_path: Path) -> None:
    network = NetworkSpec("resnet", 8, 4, 5)
    deployed = made(network, "dense")
    run, other = {"action": "run", "gate": "none"}, {"action": "fly", "gate": "decides"}
    for steps in ([run] * 2, [run] * 9, [run, run, other], [{"action": "run"}] * 3):
        save_deployed(deployed, run_of(network), tmp_path)
        _edit(tmp_path, {"steps": steps})
        with pytest.raises(UserError, match=r"deploy\.json: not a deployed network"):
            load_deployed(tmp_path)


def test_the_function_hides_no_package() -> None:
    assert hybridprune.deploy is deploy
    assert importlib.util.find_spec("hybridprune.deploy") is None
