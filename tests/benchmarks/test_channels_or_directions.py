"""benchmarks/channels_or_directions.py: channels against the solved quadratic model, directions by brute force."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from benchmarks.channels_or_directions import channel_losses, direction_loss
from hybridprune.measure.cost import count_module
from hybridprune.models.factored import DENSE
from hybridprune.pruning.budget.space import Cost
from hybridprune.pruning.directions.layers import prunable_layers
from hybridprune.pruning.directions.space import direction_space
from tests.pruning.random_curvature import DIRECTION_METHODS, cells, fisher, random_curvature, random_decompositions


def solved(matrix: Tensor, weight: Tensor, gone: tuple[int, ...]) -> float:
    """The rise of the quadratic model when these input channels go and all other weights are at their best."""
    away = torch.zeros(weight.shape, dtype=torch.bool)
    away[:, list(gone)] = True
    away = away.flatten()
    w, kept = weight.flatten()[away], ~away
    schur = matrix[away][:, away] - matrix[away][:, kept] @ torch.linalg.solve(
        matrix[kept][:, kept], matrix[kept][:, away]
    )
    return float(w @ schur @ w)


@pytest.mark.parametrize("offsets", [False, True])
def test_channels_lose_what_the_others_cannot_make_up_for(offsets: bool) -> None:
    weight = torch.randn(3, 4, 2, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    factors, moments = random_curvature(weight, 1, offsets)
    decomposition = DIRECTION_METHODS["fisher-tucker"].decompose(weight, factors, moments, 1e-12)
    matrix = fisher(factors, 2)
    scale = float(decomposition.importance.sum()) / float(weight.flatten() @ matrix @ weight.flatten())
    found = channel_losses(decomposition)
    gone: tuple[int, ...] = ()
    for number in range(1, 4):
        tried = {(*gone, j): solved(matrix, weight, (*gone, j)) * scale for j in range(4) if j not in gone}
        gone = min(tried, key=tried.__getitem__)
        assert found[number] == pytest.approx(tried[gone], rel=1e-3)
    assert len(found) == 4 and found[0] == 0


def test_directions_lose_the_least_at_a_cost() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 5, 3)).double()
    image = torch.zeros(1, 3, 8, 8, dtype=torch.float64)
    layers = prunable_layers(model, lambda: model(image))
    whole = Cost(*count_module(model, image))
    space = direction_space(
        layers, random_decompositions(layers), whole, limit=0.9, normalize=False, allow_increase=False, separable=999
    )
    pair = cells(space)
    dense = sum(cell.shape.macs(DENSE) for cell in pair)
    assert direction_loss(pair, dense) == 0
    choices = [list(zip(c.macs.tolist(), c.loss.tolist(), strict=True)) for c in (cell.choices() for cell in pair)]
    for share in (0.4, 0.7):
        fitting = [a[1] + b[1] for a, b in itertools.product(*choices) if a[0] + b[0] <= share * dense]
        assert direction_loss(pair, share * dense) == pytest.approx(min(fitting))
