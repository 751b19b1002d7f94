"""`hybridprune.prune` in a process group of the user's: one cut and one set of weights for all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hybridprune
from hybridprune.config import CurvatureOptions, CutOptions
from hybridprune.processes import rank
from tests.process_groups import together

QUICK = CurvatureOptions(curvature_images=16, moment_images=16)
METHODS = ["fisher-tucker", "taylor", "l1"]


class Net(nn.Module):
    """Channels and directions to cut."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.bn = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.second, self.head = nn.Conv2d(12, 8, 3, padding=1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.second(F.relu(self.bn(self.first(x))))).mean((2, 3)))


def batches(seed: int, count: int = 4) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    return [(torch.randn(8, 3, 6, 6, generator=draw), torch.randint(3, (8,), generator=draw)) for _ in range(count)]


def pruned(model: nn.Module, loader: Any, method: str, **options: Any) -> tuple[Any, ...]:
    """Spec and weights of what comes out."""
    common: dict[str, Any] = {"target_flops": 0.5, "curvature": QUICK, "cut": CutOptions(refit_images=16)}
    found = hybridprune.prune(model, loader, method=method, **{**common, **options})
    return found.spec, found.module.state_dict()


def both(folder: Path, work: Callable[[], Any]) -> list[Any]:
    ended = together(folder, work)
    assert [each[0] for each in ended] == [0, 0], ended[0][3] + ended[1][3]
    return [each[1] for each in ended]


@pytest.mark.parametrize("method", METHODS)
def test_all_processes_end_with_the_same_network(method: str, tmp_path: Path) -> None:
    """Though their weights, images and number of batches differ."""

    def work() -> Any:
        model = Net(seed=rank())
        before = {name: value.clone() for name, value in model.state_dict().items()}
        found = pruned(model, batches(rank(), 4 + rank()), method, fine_tune=1.0, seed=rank())
        assert all(value.equal(before[name]) for name, value in model.state_dict().items())
        return found

    (spec, weights), (other_spec, other_weights) = both(tmp_path, work)
    assert spec == other_spec and spec.edits
    torch.testing.assert_close(weights, other_weights, rtol=0, atol=0)


@pytest.mark.parametrize("method", METHODS)
def test_with_the_same_loader_they_do_what_the_first_does_alone(method: str, tmp_path: Path) -> None:
    spec, weights = pruned(Net(), batches(0), method, fine_tune=1.0)
    for found_spec, found in both(tmp_path, lambda: pruned(Net(rank()), batches(0), method, fine_tune=1.0)):
        assert found_spec == spec
        torch.testing.assert_close(found, weights, rtol=1e-3, atol=1e-5)


def test_ones_own_training_gets_the_same_network_in_all_processes(tmp_path: Path) -> None:
    """Which a wrapper for data-parallel training, made there, relies on."""

    def work() -> Any:
        seen: list[dict[str, Tensor]] = []

        def train(module: nn.Module) -> None:
            seen.append({name: value.clone() for name, value in module.state_dict().items()})

        pruned(Net(seed=rank()), batches(rank()), "taylor", fine_tune=train)
        return seen[0]

    one, other = both(tmp_path, work)
    trained = [{name: value for name, value in each.items() if "running" not in name} for each in (one, other)]
    torch.testing.assert_close(*trained, rtol=0, atol=0)
