"""Newly initialised weights."""

from __future__ import annotations

import torch

from hybridprune.engine.initialise import initialise
from hybridprune.models.edits import ResizeEdit
from hybridprune.models.gates import OPEN
from tests.networks_and_images import random_net

NARROW = (
    ResizeEdit("backbone.blocks.1.conv1", 4, 3),
    ResizeEdit("backbone.blocks.1.bn1", 3, 3),
    ResizeEdit("backbone.blocks.1.conv2", 3, 4),
)


def test_all_weights_are_new_those_of_the_seed_and_of_the_networks_shape() -> None:
    before, one, other, third = (random_net(8, edits=NARROW, seed=seed) for seed in (0, 0, 1, 2))
    initialise(one, 5, "cut")
    torch.rand(3)  # the global stream has no say
    initialise(other, 5, "cut")
    initialise(third, 6, "cut")
    pairs = list(zip(one.state_dict().items(), other.state_dict().values(), strict=True))
    assert all(torch.equal(a, b) for (_, a), b in pairs)
    for (name, old), (_, new) in zip(before.named_parameters(), one.named_parameters(), strict=True):
        assert old.shape == new.shape and not torch.equal(old, new), name
    assert not torch.equal(one.backbone.conv.weight, third.backbone.conv.weight)


def test_as_a_fresh_network_is_made() -> None:
    net = random_net(8, width=32)
    initialise(net, 0, "cut")
    deviation = float(net.backbone.blocks[0].conv1.weight.detach().std())
    assert abs(deviation / (2 / (32 * 9)) ** 0.5 - 1) < 0.05  # He et al. 2015, fan out
    assert bool((net.gate.score.bias == OPEN).all())
    for norm in (m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        assert norm.running_mean is not None and norm.running_var is not None
        assert bool((norm.weight == 1).all() and (norm.bias == 0).all())
        assert bool((norm.running_mean == 0).all() and (norm.running_var == 1).all())


def test_the_global_stream_is_left_as_it_was() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    net = random_net(8)
    torch.manual_seed(3)
    initialise(net, 0, "cut")
    assert torch.equal(torch.rand(2), expected)
