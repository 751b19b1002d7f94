"""An episode is the network's own routing, taken step by step, and its MACs are those that the accounting expects."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hybridprune.measure.cost import count
from hybridprune.models.routed import Mode
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.routing.episode import Episode
from tests.routing.three_gates import SIZE, labelled, three_gates

ROUTES = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3)))
MODES: tuple[Mode, ...] = ("masked", "executed")


def walk(episode: Episode, actions: Tensor) -> Tensor:
    """Take these actions ``[B, N]`` to the end; the gates' logits ``[B, N]``."""
    logits = []
    for gate in range(actions.shape[1]):
        assert episode.gate == gate and not episode.done and episode.logits is None
        logits.append(episode.gate_logit())
        episode.step(actions[:, gate])
    return torch.stack(logits, 1)


def started(net: GatedNetwork, images: Tensor, mode: Mode = "executed") -> Episode:
    return Episode(net, count(net, SIZE), images, mode=mode)


@pytest.mark.parametrize("mode", MODES)
def test_every_route_costs_what_the_accounting_expects(mode: Mode) -> None:
    net = three_gates()
    cost = count(net, SIZE)
    assert all(cost.gate_macs) and all(cost.block_macs) and any(cost.shortcut_macs)  # otherwise they could be left out
    episode = started(net, labelled(len(ROUTES))[0], mode)
    walk(episode, ROUTES)
    assert episode.spent_macs.dtype == torch.int64
    assert episode.spent_macs.tolist() == [cost.expected_macs(route) for route in ROUTES.tolist()]
    assert float(episode.spent_macs[-1]) == cost.backbone_macs + sum(cost.gate_macs)


def test_macs_of_large_networks_are_counted_to_the_last_one() -> None:
    net = three_gates()
    cost = dataclasses.replace(
        count(net, SIZE), start_macs=10**15 + 1, block_macs=(10**12 + 1, 10**9 + 3, 7), head_macs=10**6 + 1
    )
    episode = Episode(net, cost, labelled(len(ROUTES))[0])
    walk(episode, ROUTES)
    always = cost.fixed_macs + sum(cost.gate_macs)
    assert episode.spent_macs.tolist() == [
        always + sum(macs for macs, runs in zip(cost.block_macs, route, strict=True) if runs)
        for route in ROUTES.tolist()
    ]


class Dtypes(TorchDispatchMode):
    """Remembers the types of all that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.seen |= {leaf.dtype for leaf in tree_leaves(found) if isinstance(leaf, Tensor)}
        return found


@pytest.mark.parametrize("mode", MODES)
def test_nothing_is_computed_in_fp64_which_mps_does_not_have(mode: Mode) -> None:
    net, images = three_gates(), labelled(len(ROUTES))[0]
    with Dtypes() as dtypes:
        walk(started(net, images, mode), ROUTES)
    assert {torch.float32, torch.int64} <= dtypes.seen and torch.float64 not in dtypes.seen


def test_macs_are_spent_as_blocks_and_gates_run() -> None:
    net = three_gates()
    cost = count(net, SIZE)
    episode = started(net, labelled(2)[0])
    expected = [cost.start_macs] * 2
    assert episode.spent_macs.tolist() == expected
    actions = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    for gate in range(3):
        episode.step(actions[:, gate])
        always = cost.gate_macs[gate] + cost.shortcut_macs[gate] + (cost.head_macs if gate == 2 else 0)
        expected = [
            spent + always + (cost.block_macs[gate] if runs else 0)
            for spent, runs in zip(expected, actions[:, gate].tolist(), strict=True)
        ]
        assert episode.spent_macs.tolist() == expected


def test_whoever_decides_pays_for_its_own_decisions() -> None:
    net = three_gates()
    cost = count(net, SIZE)
    images = labelled(len(ROUTES))[0]
    with_gates, free, dear = (
        Episode(net, cost, images, gate_macs=gate_macs) for gate_macs in (None, (0, 0, 0), (7, 50, 900))
    )
    for episode in (with_gates, free, dear):
        walk(episode, ROUTES)
    assert ((with_gates.spent_macs - free.spent_macs) == sum(cost.gate_macs)).all()
    assert ((dear.spent_macs - free.spent_macs) == 957).all()
    with pytest.raises(AssertionError):
        Episode(net, cost, images, gate_macs=(0, 0))


@pytest.mark.parametrize("mode", MODES)
def test_it_computes_what_the_network_computes(mode: Mode) -> None:
    net = three_gates()
    images = labelled(len(ROUTES))[0]
    episode = started(net, images, mode)
    gate_logits = walk(episode, ROUTES)
    routed = net(images, ROUTES)
    assert bool((routed.logits.std(0) > 1e-3).all()) and bool((routed.gate_logits.std(0) > 1e-3).all())
    assert episode.done and episode.gate == net.num_gates and episode.logits is not None
    torch.testing.assert_close(episode.logits, routed.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gate_logits, routed.gate_logits, rtol=1e-5, atol=1e-5)
    with pytest.raises(AssertionError, match="over"):
        episode.step(ROUTES[:, 0])


def test_nothing_that_is_observed_trains_the_backbone() -> None:
    net = three_gates()
    images = labelled(len(ROUTES))[0]
    episode = started(net, images, "masked")
    torch.testing.assert_close(episode.observe(), net.start(images).features.mean(dim=(2, 3)))
    assert not episode.observe().requires_grad
    walk(episode, ROUTES).sum().backward()
    assert all(p.grad is None for p in net.backbone.parameters())
    assert all(p.grad is not None for p in net.gate.parameters())
    assert episode.logits is not None
    episode.logits.sum().backward()
    assert all(p.grad is not None for p in net.backbone.parameters())
