"""The search: the prior and the evolution against brute force, and candidates within the budget."""

from __future__ import annotations

import functools
from itertools import product

import pytest
import torch
from torch import Tensor

from hybridprune.measure.cost import module_macs
from hybridprune.pruning.budget.space import Budget, Cost, InfeasibleBudget, Space, UnitSet
from hybridprune.pruning.channels import channel_space
from hybridprune.pruning.channels.space import ChannelCell
from hybridprune.pruning.methods.bcnet.choices import WidthChoices, Widths
from hybridprune.pruning.methods.bcnet.evolution import Evolution, evolve
from hybridprune.pruning.methods.bcnet.prior import expected_macs, mean_losses, width_prior
from hybridprune.pruning.sparse_training.width_macs import WidthMacs
from tests.networks_and_images import random_net
from tests.pruning.channels.networks import SIZE, groups_of
from tests.pruning.random_curvature import cost_of

CPU = torch.device("cpu")
PRICES = (3, 5, 2, 4)
WIDTH = 4


def separable() -> Space:
    """Four groups of four channels, which cost ``PRICES`` each, whatever the others."""
    sets = [UnitSet(f"g{i}", torch.zeros(WIDTH), 1) for i in range(len(PRICES))]
    cells = [
        ChannelCell(f"g{i}", (i,), (WIDTH,), 1, WIDTH, (0,), (1,), macs=price, area=1, extra=0)
        for i, price in enumerate(PRICES)
    ]
    return Space(sets, cells, Cost(0, 0))


@functools.cache
def resnet_space() -> Space:
    net = random_net(8, 4)
    macs = {name: m for name, m in module_macs(net, SIZE).items() if name.startswith("backbone.")}
    groups = groups_of(net, exclude=("gate.*",))
    return channel_space(net, groups, [torch.zeros(g.channels) for g in groups], macs, cost_of(net), limit=0.6).space


def test_the_mean_of_what_is_on_record() -> None:
    inf = torch.inf
    record = torch.tensor([[1.0, 3.0], [5.0, inf], [inf, inf]])
    assert mean_losses(record).tolist() == [2, 5, 5]


def test_expected_macs_are_the_mean_over_all_networks() -> None:
    """Also where a layer reads and writes the same group, as one whose output is added to its input."""
    sets = [UnitSet("a", torch.zeros(3), 1), UnitSet("b", torch.zeros(4), 1)]
    cells = [
        ChannelCell("a", (0,), (3,), 3, 3, (1,), (1,), macs=2, area=1, extra=0),
        ChannelCell("b", (0, 1), (3, 4), 5, 8, (1, 0), (0, 2), macs=5, area=1, extra=0),
    ]
    space = Space(sets, cells, Cost(7, 0))
    draw = torch.Generator().manual_seed(0)
    sizes = [torch.arange(1.0, n + 1, dtype=torch.float64) for n in space.everything()]
    shares = [torch.rand(len(own), generator=draw, dtype=torch.float64).softmax(0) for own in sizes]
    mean = torch.stack([p @ own for p, own in zip(shares, sizes, strict=True)])
    variance = torch.stack([p @ own.square() for p, own in zip(shares, sizes, strict=True)]) - mean.square()
    expected = sum(
        float(shares[0][a - 1] * shares[1][b - 1]) * space.cost([a, b]).macs
        for a, b in product(range(1, 4), range(1, 5))
    )
    assert float(expected_macs(WidthMacs.of(space, CPU), mean, variance)) == pytest.approx(expected, rel=1e-12)


def test_the_prior_is_the_best_mixture_at_the_budget() -> None:
    """Of a separable problem, a linear programme: the best of all its corners, mixtures of two networks."""
    space, target = separable(), 30.0
    draw = torch.Generator().manual_seed(1)
    losses = [torch.rand(WIDTH, generator=draw, dtype=torch.float64).sort(descending=True).values for _ in PRICES]
    sizes = torch.arange(1.0, WIDTH + 1)
    networks = [
        (sum(float(losses[i][c - 1]) for i, c in enumerate(widths)) / len(PRICES), space.cost(widths).macs)
        for widths in product(range(1, WIDTH + 1), repeat=len(PRICES))
    ]
    best = min(
        one + (two - one) * (target - cheap) / (dear - cheap)
        for (one, cheap), (two, dear) in product(networks, repeat=2)
        if cheap <= target < dear
    )
    found = width_prior(losses, [sizes] * len(PRICES), WidthMacs.of(space, CPU), target)
    assert all(float(p.sum()) == pytest.approx(1.0) for p in found)
    worth = sum(float(p @ own) for p, own in zip(found, losses, strict=True)) / len(PRICES)
    macs = sum(price * float(p.float() @ sizes) for price, p in zip(PRICES, found, strict=True))
    assert macs == pytest.approx(target, rel=0.02)
    assert best - 0.01 < worth < best + 0.02
    assert min(float(p.min()) for p in found) > 1e-3  # no width is out of reach


def worth_of(tables: Tensor, widths: Widths) -> float:
    return float(sum(tables[i, c - 1] for i, c in enumerate(widths)))


def test_evolution_finds_the_best_widths_of_a_separable_problem() -> None:
    space, budget = separable(), Budget(macs=33)
    draw = torch.Generator().manual_seed(2)
    tables = torch.rand(len(PRICES), WIDTH, generator=draw, dtype=torch.float64).cumsum(1)
    choices = WidthChoices.of(space, budget, WIDTH)
    everything = product(range(1, WIDTH + 1), repeat=len(PRICES))
    best = max((w for w in everything if choices.allows(w)), key=lambda w: worth_of(tables, w))
    source = torch.Generator().manual_seed(0)
    tried: list[Widths] = []

    def fitness(widths: Widths) -> float:
        tried.append(widths)
        return worth_of(tables, widths)

    found = evolve(
        Evolution(population=8, generations=12, parents=4),
        lambda: torch.randint(1, WIDTH + 1, (len(PRICES),), generator=source).tolist(),
        lambda widths: choices.repaired(widths, source),
        fitness,
        source,
    )
    assert found == best
    assert len(tried) == len(set(tried)) <= 96 and all(map(choices.allows, tried))


def test_candidates_spend_the_budget_and_the_rest_is_less_than_a_bin() -> None:
    space = resnet_space()
    budget = Budget(macs=0.6 * space.cost(space.everything()).macs)
    choices = WidthChoices.of(space, budget, 4)
    source = torch.Generator().manual_seed(0)
    for start in ([0] * len(space.sets), [len(own) - 1 for own in choices.edges]):
        widths = choices.repaired(start, source)
        assert choices.allows(widths)
        for group, width in enumerate(widths):
            wider = [*widths[:group], width + 1, *widths[group + 1 :]]
            assert width >= choices.least[group]
            assert width + 1 == len(choices.edges[group]) or not choices.allows(wider)
        filled = choices.filled(widths)
        assert budget.allows(space.cost(filled))
        for own, width, channels, units in zip(choices.edges, widths, filled, space.sets, strict=True):
            assert units.least <= own[width] <= channels
            assert channels < own[width + 1] if width + 1 < len(own) else channels == own[width]


def test_bins_that_are_too_few_for_the_budget_are_refused() -> None:
    space = resnet_space()
    budget = Budget(macs=1.2 * space.floor().macs)
    with pytest.raises(InfeasibleBudget):
        WidthChoices.of(space, budget, 1)
