"""Peel on the networks of its paper: all of their layers are in groups, the cut is exact, the budget is met."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn

from hybridprune.measure.cost import count_module
from hybridprune.measure.effective import count_weights, effective_sparsity
from hybridprune.pruning.budget.space import Budget, Cost, Space
from hybridprune.pruning.budget.width_growth import Goal, Growth, adapruner, initial_widths, peel
from hybridprune.pruning.channels import ChannelGroup, channel_groups, channel_space, remove_channels
from hybridprune.pruning.channels.scores import Statistics
from hybridprune.pruning.channels.scores.scale import mean_scale
from hybridprune.pruning.directions.layers import layer_macs
from tests.networks_and_images import random_images, randomise

SIZE = 32
NETWORKS = ["resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0"]
pytestmark = pytest.mark.full


def run(model: nn.Module, images: Tensor) -> Tensor:
    return model(images)


@functools.cache
def network(name: str) -> tuple[nn.Module, list[ChannelGroup]]:
    """In double precision, with random BatchNorms, and its groups."""
    torch.manual_seed(0)
    net = torchvision.models.get_model(name, num_classes=10)
    randomise(net)
    for parameter in net.double().parameters():  # of millions of random weights one may be 0
        parameter.data.masked_fill_(parameter == 0, 1e-3)
    example = random_images(1, SIZE).double()
    return net, channel_groups(net, run, example, exclude=(), coupled=True)


@torch.no_grad()
def silenced(net: nn.Module, groups: list[ChannelGroup], removed: list[Tensor]) -> nn.Module:
    """A copy in which the channels are exact zeros, by their BatchNorms or, without one, by their filters."""
    net = copy.deepcopy(net)
    for group, index in zip(groups, removed, strict=True):
        for member in group.of("norm") or group.of("producer"):
            for parameter in net.get_submodule(member.layer).parameters():
                parameter[member.index[index].flatten()] = 0
    return net


def cost(net: nn.Module) -> Cost:
    return Cost(*count_module(net, random_images(1, SIZE).double()))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_convolution_and_norm_is_in_a_group(name: str) -> None:
    net, groups = network(name)
    members = {member.layer for group in groups for member in group.members if member.role != "consumer"}
    layers = {n for n, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)}
    assert members - {"classifier.0"} == layers  # and the hidden linear layer of mobilenet_v3
    assert all(group.of("norm") or "fc1" in group.name or group.name == "classifier.0" for group in groups)
    assert sum("fc2" in m.layer for g in groups for m in g.of("producer")) == sum("fc2" in layer for layer in layers)


@pytest.mark.parametrize(
    ("name", "allocate"), [*((name, peel) for name in NETWORKS), ("mobilenet_v3_small", adapruner)]
)
def test_half_of_the_flops_without_loss(name: str, allocate: Callable[[Space, Goal, Growth], list[int]]) -> None:
    net, groups = network(name)
    example, images = random_images(1, SIZE).double(), random_images(4, SIZE, seed=1).double()
    statistics = Statistics(dict(net.named_modules()), groups=groups)
    scores = [mean_scale(group, statistics) for group in groups]
    whole = cost(net)
    plan = channel_space(net, groups, scores, layer_macs(net, lambda: net(example)), whole, limit=0.9)
    goal, growth = Goal(0.5, Budget(macs=0.5 * whole.macs)), Growth(round_to=4)
    kept = allocate(plan.space, goal, growth)

    removed = plan.removed(kept)
    small = copy.deepcopy(net)
    remove_channels(small, groups, removed, run, example)
    with torch.no_grad():
        expected, found = silenced(net, groups, removed)(images), small(images)
        assert torch.allclose(found, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))
        assert not torch.allclose(net(images), expected, rtol=1e-3)

    recounted = cost(small)
    assert recounted == plan.space.cost(kept) and recounted.macs <= 0.5 * whole.macs
    for index, units in enumerate(plan.space.sets):
        wider = [*kept[:index], min(4 * (kept[index] // 4 + 1), len(units.scores)), *kept[index + 1 :]]
        assert wider == kept or plan.space.cost(wider).macs > 0.5 * whole.macs
    if allocate is peel:
        assert all(now >= before for now, before in zip(kept, initial_widths(plan.space, goal, growth), strict=True))
    for module in small.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            assert module.groups == module.in_channels == module.out_channels

    # What is left lives but for what only sees padding, and what only was silenced counts as gone.
    found = effective_sparsity(small, example, count_weights(net))
    assert found >= 1 - count_weights(small) / count_weights(net)
    half = effective_sparsity(silenced(net, groups, removed), example, count_weights(net))
    assert half == pytest.approx(found, abs=1e-12)
