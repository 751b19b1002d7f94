"""Budgets of time from end to end, by a clock without noise."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hybridprune
from hybridprune.config import CurvatureOptions, CutOptions, LatencyTarget
from hybridprune.errors import UserError
from hybridprune.models.edits import FactorEdit
from hybridprune.models.factored import FactoredLayer
from hybridprune.models.spec import NetworkSpec
from tests.latency.machine import Machine, machine, settle

__all__ = ["machine"]
QUICK: dict[str, Any] = {"curvature": CurvatureOptions(curvature_images=16, moment_images=16)}


class Shortcuts(nn.Module):
    """A stem, two blocks with shortcuts, one of them strided and projected, and a classifier."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.first, self.second = _Block(width, width, 1), _Block(width, 2 * width, 2)
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(self.stem(x))).mean((2, 3)))


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


def factored_parent() -> nn.Module:
    """A ResNet some of whose layers are factored already."""
    edits = (
        FactorEdit("backbone.blocks.0.conv1", 5, 6),
        FactorEdit("backbone.blocks.1.conv2", 10, None),
        FactorEdit("backbone.blocks.2.conv1", 12, 12, separable=True),
    )
    return NetworkSpec("resnet", 8, 8, 10, edits).build().backbone


def linear() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(192, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
    )


def plain() -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((3, 16, 1), (16, 32, 2), (32, 32, 1)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "shortcuts": Shortcuts,
    "factored parent": factored_parent,
    "linear": linear,
    "plain": plain,
}


def batches() -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    return [(torch.randn(8, 3, 8, 8, generator=draw), torch.randint(10, (8,), generator=draw)) for _ in range(2)]


def cut(network: str, target: float | None = 0.6, batch: int = 4, **options: Any) -> hybridprune.Pruned:
    torch.manual_seed(0)
    data = batches()
    model = settle(NETWORKS[network](), data[0][0])
    cut = CutOptions(**{"refit_images": 0, **options.pop("cut", {})})
    how = {} if target is None else {"latency": LatencyTarget(batch=batch, seconds=1e9)}
    return hybridprune.prune(model, data, target_latency=target, cut=cut, progress=False, **how, **QUICK, **options)


def realised(machine: Machine, module: nn.Module, batch: int = 4) -> float:
    """Milliseconds of the module as it is deployed in the end."""
    images = torch.randn(batch, 3, 8, 8).to(memory_format=torch.channels_last)
    found = hybridprune.deploy(module, images, time=machine, progress=False).module
    with torch.inference_mode():
        return machine.ms(lambda: found(images))


@pytest.mark.parametrize("method", ["fisher-tucker", "eigendamage", "l1", "taylor"])
@pytest.mark.parametrize("network", NETWORKS)
def test_the_budget_is_met(network: str, method: str, machine: Machine) -> None:
    if method in ("l1", "taylor") and network == "factored parent":
        network = "shortcuts"
    machine.wholes = 1.3  # which no table of layers knows
    pruned = cut(network, 0.7, method=method)
    record = pruned.spec.latency
    assert record is not None and record["met"] and record["rounds"] <= 6
    assert 0.65 <= record["realised_ms"] / record["dense_ms"] <= 0.735
    assert realised(machine, pruned.module) == pytest.approx(record["realised_ms"], rel=1e-6)
    assert f"{record['realised_ms']:.4g} ms deployed" in str(pruned)
