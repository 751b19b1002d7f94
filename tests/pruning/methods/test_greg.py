"""GReg pushes the filters of the channels that go, in every layer of their group, and nothing else."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

import hybridprune
from hybridprune.config import SparsityOptions
from hybridprune.pruning.budget.space import Cost, Space
from hybridprune.pruning.channels import channel_groups
from hybridprune.pruning.method import ChannelMethod
from hybridprune.pruning.methods import find
from hybridprune.pruning.sparse_training.protocol import Sparsity, Target
from tests.networks_and_images import random_images, random_net

OPTIONS = SparsityOptions(greg_rise=0.5)


def sparsity(method: str) -> Sparsity:
    found = find(method)
    assert isinstance(found, ChannelMethod) and found.sparsity is not None
    return found.sparsity


@pytest.fixture
def target() -> Target:
    net = random_net(8).backbone
    groups = channel_groups(net, lambda m, x: m(x), random_images(1), exclude=("blocks.2.*",), coupled=True)
    removed = {group.name: [number % 2, 2] for number, group in enumerate(groups)}
    return Target(net, groups, Space([], [], Cost(0, 0)), None, removed)


@pytest.mark.parametrize("method", ["greg-1", "greg-2"])
def test_the_filters_that_go_are_pushed_in_all_layers_of_their_group(method: str, target: Target) -> None:
    training = sparsity(method).after
    assert training is not None and training.start == "current"
    drive = training.prepare(target, OPTIONS)
    for parameter in target.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    drive.pressure.add_gradients(0.0)
    filters = {m.layer: target.removed[g.name] for g in target.groups for m in g.of("producer")}
    assert {"conv", "blocks.0.conv2", "blocks.0.conv1"} <= filters.keys() and "blocks.2.conv1" not in filters
    for name, parameter in target.model.named_parameters():
        expected = torch.zeros_like(parameter)
        layer, _, kind = name.rpartition(".")
        if kind == "weight" and layer in filters:
            expected[filters[layer]] = 0.5 * parameter.detach()[filters[layer]]
        assert parameter.grad is not None and torch.equal(parameter.grad, expected), name


def test_depthwise_filters_are_pushed_too() -> None:
    net = nn.Sequential(
        *(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, groups=4), nn.ReLU(), nn.Conv2d(4, 2, 1)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )
    groups = channel_groups(net, lambda m, x: m(x), random_images(1), exclude=(), coupled=True)
    training = sparsity("greg-1").after
    assert training is not None and [group.name for group in groups] == ["0"]
    training.prepare(Target(net, groups, Space([], [], Cost(0, 0)), None, {"0": [3]}), OPTIONS).pressure.add_gradients(
        0
    )
    for layer in ("0", "2"):
        weight = net.get_submodule(layer).get_parameter("weight")
        assert weight.grad is not None and torch.equal(weight.grad[3], 0.5 * weight[3]) and not weight.grad[:3].any()


def test_greg_2_first_pushes_all_filters_alike_up_to_a_hundredth(target: Target) -> None:
    assert sparsity("greg-1").before is None
    training = sparsity("greg-2").before
    assert training is not None
    drive = training.prepare(dataclasses.replace(target, removed={}), dataclasses.replace(OPTIONS, greg_rise=0.004))
    expected = [0.004] * 10 + [0.008] * 10 + [0.01] * 5
    layers = {member.layer for group in target.groups for member in group.of("producer")}
    for factor in expected:
        for parameter in target.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        drive.pressure.add_gradients(0.0)
        for name, parameter in target.model.named_parameters():
            pushed = name.removesuffix(".weight") in layers
            wanted = factor * parameter.detach() if pushed else torch.zeros_like(parameter)
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, wanted)


def test_the_options_say_how_it_grows(target: Target) -> None:
    training = sparsity("greg-1").after
    assert training is not None
    options = SparsityOptions(greg_rise=0.5, greg_interval=3, sparsity_weight=0.75)
    pressure = training.prepare(target, options).pressure
    found = []
    for _ in range(8):
        pressure.add_gradients(0.0)
        found.append(float(pressure.state_dict()["lambdas"].max()))
    assert found == [0.5] * 3 + [0.75] * 5


@pytest.mark.parametrize("method", ["greg-1", "greg-2"])
def test_one_call_prunes_a_module_of_ones_own(method: str) -> None:
    net = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)),
    )
    draw = torch.Generator().manual_seed(0)
    data = [(torch.rand(8, 3, 8, 8, generator=draw), torch.randint(3, (8,), generator=draw)) for _ in range(3)]
    options = SparsityOptions(sparse_epochs=2)
    pruned = hybridprune.prune(net, data, target_flops=0.5, method=method, sparsity=options)
    assert 0.3 * pruned.spec.dense_macs < pruned.spec.macs <= 0.5 * pruned.spec.dense_macs
