"""Networks of other tasks than one class an image: cut within the budget, and trained by their own loss."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hybridprune
from hybridprune.config import CurvatureOptions, SparsityOptions
from hybridprune.curvature import likelihood_of

QUICK = CurvatureOptions(curvature_images=32, moment_images=32)
SIZE = 6


class Net(nn.Module):
    """One vector an image, or one a position."""

    def __init__(self, outputs: int, dense: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.bn = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.second, self.head = nn.Conv2d(12, 16, 3, padding=1), nn.Conv2d(16, outputs, 1)
        self.dense = dense

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(F.relu(self.second(F.relu(self.bn(self.first(x))))))
        return y if self.dense else y.mean((2, 3))


def targets_of(images: Tensor) -> dict[str, Tensor]:
    """What can be learnt of the images."""
    means, middle = images.mean((2, 3)), images.abs().mean((1, 2, 3))
    return {
        "multi-label": (means > 0).long(),
        "one logit": (2 * means[:, :1] + images[:, 1, 0, :1] > 0).long(),
        "regression": torch.cat([means, middle[:, None]], 1) * 3,
        "segmentation": images.argmax(1),
    }


TASKS: dict[str, tuple[int, bool, str, Callable[[Tensor, Tensor], Tensor]]] = {
    "multi-label": (3, False, "bce", lambda y, t: F.binary_cross_entropy_with_logits(y, t.float())),
    "one logit": (1, False, "bce", lambda y, t: F.binary_cross_entropy_with_logits(y, t.float())),
    "regression": (4, False, "mse", F.mse_loss),
    "segmentation": (3, True, "cross_entropy", F.cross_entropy),
}


def data(task: str, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    # each image has a colour, or there would be little to learn
    noise, colours = (torch.randn(64, 3, size, size, generator=draw) for size in (SIZE, 1))
    return [(x, targets_of(x)[task]) for x in (noise + colours).split(16)]


@functools.cache
def learnt(task: str) -> nn.Module:
    outputs, dense, _, loss = TASKS[task]
    model = Net(outputs, dense).train()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(30):
        for images, targets in data(task):
            optimizer.zero_grad()
            loss(model(images), targets).backward()
            optimizer.step()
    return model.eval()


@torch.no_grad()
def loss_of(model: nn.Module, task: str) -> float:
    return sum(TASKS[task][3](model(images), targets).item() for images, targets in data(task)) / 4


@pytest.mark.parametrize("as_function", [False, pytest.param(True, marks=pytest.mark.full)])
@pytest.mark.parametrize("task", TASKS)
def test_pruned_and_trained_by_the_tasks_own_loss(task: str, as_function: bool) -> None:
    model, (_, _, name, function) = learnt(task), TASKS[task]
    loss: Any = (lambda output, batch: function(output, batch[1])) if as_function else name
    options: dict[str, Any] = {"target_flops": 0.4, "curvature": QUICK, "loss": loss}
    cut = hybridprune.prune(model, data(task), **options)
    assert 0.3 * cut.spec.dense_macs < cut.spec.macs <= 0.4 * cut.spec.dense_macs and not cut.left_alone
    random = [hybridprune.prune(model, data(task), **options, method="random", seed=seed) for seed in range(3)]
    tuned = hybridprune.prune(model, data(task), **options, method="random", fine_tune=8.0, lr=0.005, kd_weight=0)
    dense, found, after = (loss_of(m, task) for m in (model, cut.module, tuned.module))
    chances = [loss_of(each.module, task) for each in random]
    assert dense < found < 0.5 * sum(chances) / 3, "what was measured says what matters"
    assert after < 0.8 * chances[0], "and what is trained is this loss"


@pytest.mark.parametrize("task", TASKS)
def test_distilled_in_the_losss_own_way(task: str) -> None:
    """By the teacher alone: what is learnt is what the teacher says."""
    model = learnt(task)
    options: dict[str, Any] = {"target_flops": 0.4, "method": "random", "loss": TASKS[task][2], "lr": 0.005}
    cut = hybridprune.prune(model, data(task), **options)
    tuned = hybridprune.prune(model, data(task), **options, fine_tune=6.0, kd_weight=1.0)
    images = torch.cat([x for x, _ in data(task)])
    with torch.no_grad():
        teacher, likelihood = model(images), likelihood_of(TASKS[task][2])
        far, near = (float(likelihood.divergence(m(images), teacher, 4.0)) for m in (cut.module, tuned.module))
    assert near < 0.5 * far


@pytest.mark.parametrize("method", ["taylor", "kron-obd", "slimming"])
def test_methods_that_train_or_measure_take_the_loss_too(method: str) -> None:
    """The function is the only one that knows what the outputs are."""
    seen: list[tuple[int, ...]] = []

    def loss(output: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
        seen.append(tuple(output["y"].shape))
        return F.mse_loss(output["y"], batch["t"])

    batches = [{"x": images, "t": targets} for images, targets in data("regression")]
    found = hybridprune.prune(
        learnt("regression"),
        batches,
        target_flops=0.5,
        method=method,
        curvature=QUICK,
        sparsity=SparsityOptions(sparse_epochs=1),
        loss=loss,
        forward=lambda model, batch: {"y": model(batch["x"])},
    )
    assert found.spec.macs <= 0.5 * found.spec.dense_macs and len(seen) > 2
