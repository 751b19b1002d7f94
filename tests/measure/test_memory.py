"""Memory of a forward pass, by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from hybridprune.measure.memory import activation_bytes, weight_bytes

X = torch.zeros(2, 3, 16, 16)


class Function(nn.Module):
    def __init__(self, run: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)


def chain(x: Tensor) -> Tensor:
    for _ in range(4):
        x = x * 2
    return x


def kept_by_a_view(x: Tensor) -> Tensor:
    y = (x + 1).view(-1)
    y.add_(1)
    return y + y.new_ones(1)


def residual(x: Tensor) -> Tensor:
    y = x + 1
    z = y + 1
    return y + z


@pytest.mark.parametrize(("run", "alive"), [(chain, 2), (kept_by_a_view, 2), (residual, 3), (torch.flatten, 0)])
def test_tensors_that_are_alive_at_once(run: Callable[[Tensor], Tensor], alive: int) -> None:
    one = 4 if run is kept_by_a_view else 0
    assert activation_bytes(Function(run), X) == alive * X.numel() * 4 + one


def test_a_small_network() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1)
    ).eval()
    assert activation_bytes(net, X) == 4 * 2 * 256 * (8 + 8)
    assert activation_bytes(net, X[:1]) == 4 * 256 * (8 + 8)
    weights = 4 * sum(x.numel() for x in net.state_dict().values()) + 4  # the number of batches is an int64
    assert weight_bytes(net) == weights
    assert weight_bytes(nn.ModuleList([net, nn.Sequential(net[0])])) == weights
