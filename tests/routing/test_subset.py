"""Gates that start from a subset, against all eight subsets of a net of three gates."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hybridprune.data import EvalBatches, LabelledImages, TrainBatches
from hybridprune.measure.cost import NetworkCost, count
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.routing.subset import LESSONS, SURE, Subset, best_subset, lessons, start_from_subset, teach
from tests.routing.three_gates import CLASSES, SIZE, three_gates

Route = tuple[int, ...]


def batches(images: int = 24, batch_size: int = 10) -> EvalBatches:
    draw = torch.Generator().manual_seed(5)
    pixels = torch.randint(256, (images, 3, SIZE, SIZE), generator=draw, dtype=torch.uint8)
    data = LabelledImages(pixels, torch.arange(images) % CLASSES)
    stats = ((0.5,) * 3, (0.25,) * 3)
    return EvalBatches(
        data, None, batch_size=batch_size, mean=stats[0], std=stats[1], device="cpu", channels_last=False
    )


def losses(net: GatedNetwork) -> dict[Route, float]:
    """The mean loss of every subset."""
    whole = next(iter(batches(24, 24)))
    found = {}
    for route in itertools.product((0, 1), repeat=3):
        logits = net(whole.images, torch.tensor(route).float().expand(24, -1)).logits
        found[route] = float(F.cross_entropy(logits, whole.labels).detach())
    return found


def flipped(route: Route, block: int) -> Route:
    return tuple(1 - keep if i == block else keep for i, keep in enumerate(route))


def by_hand(table: dict[Route, float], macs: tuple[int, ...], room: float) -> Route:
    """The greedy search on the table of all losses."""
    route: Route = (1, 1, 1)

    def price(block: int) -> float:
        return (table[flipped(route, block)] - table[route]) / macs[block]

    def spent(of: Route) -> int:
        return sum(cost for cost, keep in zip(macs, of, strict=True) if keep)

    while spent(route) > room:
        route = flipped(route, min((b for b in range(3) if route[b]), key=price))
    while fitting := [b for b in range(3) if not route[b] and spent(flipped(route, b)) <= room]:
        route = flipped(route, min(fitting, key=price))
    return route


def net_and_cost(seed: int) -> tuple[GatedNetwork, NetworkCost]:
    net = three_gates(seed)
    return net, count(net, SIZE)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [0.0, 0.35, 0.5, 0.75, 1.0])
def test_the_search_is_the_greedy_one_over_the_table_of_all_losses(seed: int, share: float) -> None:
    net, cost = net_and_cost(seed)
    room = share * sum(cost.block_macs)
    subset = best_subset(net, cost, batches(), cost.fixed_macs + room)
    route = tuple(int(keep) for keep in subset.route)
    table = losses(net)
    assert route == by_hand(table, cost.block_macs, room)
    assert sum(cost.block_macs[b] for b in range(3) if route[b]) <= room
    for block in range(3):
        if route[block]:
            worth = (table[flipped(route, block)] - table[route]) / cost.block_macs[block]
            assert float(subset.worth[block]) == pytest.approx(worth, abs=1e-8)


@pytest.mark.parametrize(
    ("route", "worth", "expected"),
    [
        ([1, 0, 1], [10.0, 1.0, 3.0], [SURE, -SURE / 2, SURE / 2]),
        ([1, 0, 0], [4.0, 3.6, -1.0], [SURE * (4 / 3.8 - 1), -SURE * (1 - 3.6 / 3.8), -SURE]),
        ([1, 0, 1], [0.5, -2.0, 1.0], [SURE, -SURE, SURE]),  # a price below 0
        ([1, 1, 1], [1.0, 2.0, 3.0], [SURE, SURE, SURE]),
        ([0, 0, 0], [1.0, 2.0, 3.0], [-SURE, -SURE, -SURE]),
    ],
)
def test_gates_are_undecided_at_the_edge(route: list[int], worth: list[float], expected: list[float]) -> None:
    logits = Subset(torch.tensor(route).float(), torch.tensor(worth).double()).logits()
    torch.testing.assert_close(logits, torch.tensor(expected))


@pytest.mark.full
@pytest.mark.parametrize("gate", ["rnn", *(pytest.param(gate, marks=pytest.mark.full) for gate in ("ff1", "ff2"))])
def test_gates_learn_what_they_are_taught_and_the_backbone_does_not(gate: str) -> None:
    torch.manual_seed(0)
    net = GatedNetwork(three_gates().backbone, gate).train()
    before = copy.deepcopy(net)
    wanted = torch.tensor([2.0, -3.0, 0.5])
    error = teach(net, count(net, SIZE), wanted, [batch for _ in range(150) for batch in batches()])
    assert error < 0.1
    assert all(module.training for module in net.modules())
    seen = net.eval()(next(iter(batches())).images).gate_logits.detach()
    assert float((seen - wanted).abs().max()) < 1
    assert states_equal(net.backbone.state_dict(), before.backbone.state_dict())


def states_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_gates_are_paid_for_by_the_budget() -> None:
    net, cost = net_and_cost(0)
    exactly = cost.fixed_macs + sum(cost.block_macs)
    images = TrainBatches(
        LabelledImages(torch.zeros(8, 3, SIZE, SIZE, dtype=torch.uint8), torch.zeros(8, dtype=torch.int64)),
        torch.arange(8),
        batch_size=4,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        crop=False,
        flip=False,
        seed=0,
        device="cpu",
        channels_last=False,
    )
    assert len(list(lessons(images))) == LESSONS > len(images)
    with_gates = start_from_subset(net, cost, exactly + sum(cost.gate_macs), batches(), images)
    assert with_gates.route.tolist() == [1, 1, 1]
    assert bool((net(next(iter(batches())).images).gate_logits > 0).all())
    without = start_from_subset(net, cost, exactly + sum(cost.gate_macs) - 1, batches(), images)
    assert without.route.sum() < 3
