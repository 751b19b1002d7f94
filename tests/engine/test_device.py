"""Devices by name, and one sentence for those that are not there or cannot do what is needed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import hybridprune
from hybridprune.api.inference import Model
from hybridprune.engine.device import check_kind, device_of
from hybridprune.errors import UserError
from hybridprune.measure.cost import count
from hybridprune.routing.env import GateRoutingVectorEnv
from tests.networks_and_images import random_images, random_net
from tests.processes import run_forked

BATCH = [(torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]))]

NO_SPEC: Any = None


def test_devices_that_are_there() -> None:
    assert device_of("cpu") == device_of(torch.device("cpu")) == torch.device("cpu")
    assert device_of("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["mps", "mps:0", "xpu", "meta"])
def test_other_kinds_are_refused_before_anything_is_put_there(name: str) -> None:
    with pytest.raises(UserError, match=rf"^--device {name}: not supported, only cpu and cuda are .*use cpu$"):
        device_of(name)
    with pytest.raises(UserError, match=rf"^the network is on {name}: not supported"):
        check_kind(torch.device(name), "the network is on")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("name", ["cuda", "cuda:7", "gpu", "cpu:x"])
def test_what_is_not_there_is_named_with_the_option(name: str) -> None:
    with pytest.raises(
        UserError, match=rf"^device {name}: not available \(.*\); use cpu, or cuda:N on a machine"
    ) as found:
        device_of(name, "device")
    assert "\n" not in str(found.value)


def test_a_kind_that_is_none_does_not_list_those_that_are() -> None:
    with pytest.raises(
        UserError, match=r"^--device gpu: not available \(there is no such kind of device\); use cpu, or"
    ):
        device_of("gpu")


def elsewhere() -> nn.Module:
    """Its parameters are where nothing can be computed."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 3)).to("meta")


CALLS: dict[str, Callable[[], Any]] = {
    "load": lambda: hybridprune.load("nowhere", "mps"),
    "train": lambda: hybridprune.train("digits", "resnet8-w4", "ucs", device="mps"),
    "prune_finetune": lambda: hybridprune.prune_finetune(random_net(8), "digits", "ucs", device="mps"),
    "deploy": lambda: hybridprune.deploy(random_net(8), random_images(2), "mps"),
    "prune": lambda: hybridprune.prune(elsewhere(), BATCH, target_flops=0.5),
    "predict": lambda: hybridprune.predict(
        Model(random_net(8).to("meta"), NO_SPEC), torch.zeros(3, 8, 8, dtype=torch.uint8)
    ),
    "the environment": lambda: GateRoutingVectorEnv(
        random_net(8).to("meta"), count(random_net(8), 8), random_images(2), torch.tensor([0, 1]), alpha=1.0
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_every_way_in_refuses_them_in_one_line(name: str) -> None:
    with pytest.raises(UserError, match=r"(mps|meta): not supported, only cpu and cuda are") as found:
        CALLS[name]()
    assert "\n" not in str(found.value)


@pytest.mark.full
@pytest.mark.parametrize("command", ["main_sp.py", "main_prune.py", "main_rl_prune.py"])
def test_stages_refuse_them_before_they_begin(command: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    done = run_forked(command, "--dataset", "digits", "--resize", "8", "--device", "mps", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines() == [
        "error: --device mps: not supported, only cpu and cuda are (others may lack float64); use cpu"
    ]
    assert not (tmp_path / "results").exists()
