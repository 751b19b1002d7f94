"""benchmarks/channels_or_directions.py: directions by brute force."""

from __future__ import annotations

import itertools

import pytest
import torch

from benchmarks.channels_or_directions import direction_loss
from hybridprune.measure.cost import count_module
from hybridprune.models.factored import DENSE
from hybridprune.pruning.budget.space import Cost
from hybridprune.pruning.directions.layers import prunable_layers
from hybridprune.pruning.directions.space import direction_space
from tests.pruning.random_curvature import cells, random_decompositions


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
