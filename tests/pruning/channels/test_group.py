"""Channel groups of networks that are wired in every way, and what cannot be followed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hybridprune.models.pyramidnet import PyramidNet
from tests.networks_and_images import random_net
from tests.pruning.channels.networks import (
    Branches,
    Odd,
    Vgg,
    assert_same_as_silenced,
    groups_of,
    randomised,
)


def test_groups_of_the_gated_resnet() -> None:
    net = random_net(14, 4)
    inner = groups_of(net, coupled=False)
    assert [g.name for g in inner] == [f"backbone.blocks.{i}.conv1" for i in range(6)]
    assert [g.channels for g in inner] == [4, 4, 8, 8, 16, 16]
    everything = groups_of(net)
    coupled = [g for g in everything if g.coupled]
    assert [g.name for g in coupled] == ["backbone.conv", "backbone.blocks.2.conv2", "backbone.blocks.4.conv2"]
    assert len(everything) == len(inner) + len(coupled)
    first = coupled[0]
    assert {m.layer for m in first.of("producer")} == {"backbone.conv", *(f"backbone.blocks.{i}.conv2" for i in (0, 1))}
    assert {m.layer for m in first.of("consumer")} == {
        *(f"backbone.blocks.{i}.conv1" for i in (0, 1, 2)),
        "backbone.blocks.2.projection.0",
        "gate.embeddings.0",
        "gate.embeddings.1",
    }


def test_groups_of_a_sequential_network_leave_the_outputs_alone() -> None:
    groups = groups_of(Vgg(), coupled=False)
    assert [(g.name, g.channels) for g in groups] == [("0", 6), ("4", 8), ("8", 7)]
    (flat,) = groups[1].of("consumer")
    assert flat.index.tolist() == [list(range(16 * c, 16 * c + 16)) for c in range(8)]


def test_groups_across_concatenations_and_products() -> None:
    groups = {g.name: g for g in groups_of(Branches())}
    assert list(groups) == ["left", "right", "mix", "squeeze"]
    (follows,) = groups["right"].of("depthwise")
    assert follows.index.flatten().tolist() == [4, 5, 6, 7, 8]
    assert {m.layer for m in groups["mix"].of("producer")} == {"mix", "more", "excite"}
    assert [g.name for g in groups_of(Branches(), coupled=False)] == ["left", "right", "squeeze"]


def test_excluded_layers_keep_their_outputs() -> None:
    names = {g.name for g in groups_of(random_net(8, 4), exclude=["backbone.blocks.1.*", "backbone.conv"])}
    assert names == {"backbone.blocks.0.conv1", "backbone.blocks.2.conv1", "backbone.blocks.2.conv2"}
    assert groups_of(Vgg(), exclude=["*"]) == []


@pytest.mark.parametrize(
    "net",
    [
        Odd(lambda x: x[:, :5], 5),
        Odd(lambda x: x[:, -5:], 5),
        Odd(lambda x: x.chunk(2, 1)[0] + x.chunk(2, 1)[1], 4),
        Odd(lambda x: torch.cat(x.chunk(2, 1)[::-1], 1), 8),
        Odd(lambda x: nn.functional.pad(x, (0, 0, 0, 0, 2, 0)), 10),
        Odd(lambda x: x.flip(1), 8),
        Odd(lambda x: x.unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2), 8),
        Odd(lambda x: x - x.mean(1, keepdim=True), 8),
        Odd(lambda x: x.softmax(1), 8),
        Odd(nn.GroupNorm(2, 8), 8),
        Odd(lambda x: x.unflatten(1, (2, 4)).softmax(1).flatten(1, 2), 8),
        Odd(nn.PReLU(8), 8),
        Odd(lambda x: x, 8, nn.Conv2d(8, 4, 3, groups=2)),
        Odd(lambda x: x, 8, nn.Conv2d(8, 4, 3, groups=4)),
    ],
)
def test_what_cannot_be_followed_is_left_alone(net: Odd) -> None:
    names = [g.name for g in groups_of(net)]
    assert "stem" not in names
    grouped_head = getattr(net.head[0], "groups", 1) > 1
    assert names == ([] if grouped_head else ["head.0"])


def test_a_sum_without_a_second_layer_counts_as_coupled() -> None:
    net = Odd(lambda x: x + x.relu(), 8)
    assert [g.name for g in groups_of(net)] == ["stem", "head.0"]
    assert [g.name for g in groups_of(net, coupled=False)] == ["head.0"]


@pytest.mark.full
def test_padded_shortcuts_leave_the_inner_channels() -> None:
    groups = groups_of(PyramidNet(14, 4, 5, 12), 32)
    assert [g.name for g in groups] == [f"blocks.{i}.residual.conv1" for i in range(6)]
    net = randomised(PyramidNet(14, 4, 5, 12))
    assert_same_as_silenced(net, groups_of(net, 32), 32)
