"""The space of channels: costs that the cut network confirms, the order of the channels, and the limit."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import nn

from hybridprune.measure.cost import module_macs
from hybridprune.pruning.budget.space import Cost
from hybridprune.pruning.channels import (
    ChannelGroup,
    ChannelSpace,
    channel_space,
)
from tests.networks_and_images import random_net
from tests.pruning.channels.networks import (
    NETS,
    SIZE,
    Vgg,
    groups_of,
    remove,
)


def _cost(net: nn.Module, size: int = SIZE) -> Cost:
    return Cost(sum(module_macs(net, size).values()), sum(p.numel() for p in net.parameters()))


def space_of(net: nn.Module, groups: Sequence[ChannelGroup], limit: float = 1.0, **more: Any) -> ChannelSpace:
    draw = torch.Generator().manual_seed(0)
    scores = [torch.rand(g.channels, generator=draw) for g in groups]
    return channel_space(net, groups, scores, module_macs(net, SIZE), _cost(net), limit=limit, **more)


@pytest.fixture(scope="module", params=NETS)
def planned(request: pytest.FixtureRequest) -> tuple[nn.Module, list[ChannelGroup], ChannelSpace]:
    net = random_net(8) if request.param == "resnet" else NETS[request.param]()
    groups = groups_of(net)
    return net, groups, space_of(net, groups)


def test_the_cost_of_everything_is_that_of_the_network(
    planned: tuple[nn.Module, list[ChannelGroup], ChannelSpace],
) -> None:
    net, _, plan = planned
    assert plan.space.cost(plan.space.everything()) == _cost(net)


@hypothesis.settings(max_examples=5)
@hypothesis.given(data=st.data())
def test_the_cost_is_that_of_the_cut_network(
    planned: tuple[nn.Module, list[ChannelGroup], ChannelSpace], data: st.DataObject
) -> None:
    net, groups, plan = planned
    kept = [data.draw(st.integers(1, g.channels)) for g in groups]
    net = copy.deepcopy(net)
    remove(net, groups, plan.removed(kept))
    assert plan.space.cost(kept) == _cost(net)


def test_the_worst_channels_go_and_the_limit_holds() -> None:
    net = Vgg()
    groups = groups_of(net)
    scores = [torch.tensor([3.0, 1.0, 5.0, 2.0, 4.0, 2.0]), torch.rand(8), torch.rand(7)]
    plan = channel_space(
        net, groups, scores, module_macs(net, SIZE), _cost(net), limit=0.5, dense={"0": 8, "4": 8, "8": 9}
    )
    assert [s.least for s in plan.space.sets] == [4, 4, 5]
    assert plan.space.sets[0].scores.tolist() == [5, 4, 3, 2, 2, 1]
    assert [r.tolist() for r in plan.removed([3, 8, 7])] == [[1, 3, 5], [], []]


def test_layers_that_do_not_count_are_left_out_of_the_cost() -> None:
    net = random_net(14, 4)
    groups = groups_of(net)
    macs = {name: m for name, m in module_macs(net, SIZE).items() if name.startswith("backbone.")}

    def backbone() -> Cost:
        counted = (m for name, m in module_macs(net, SIZE).items() if name.startswith("backbone."))
        return Cost(sum(counted), sum(p.numel() for p in net.backbone.parameters()))

    plan = channel_space(net, groups, [torch.rand(g.channels) for g in groups], macs, backbone(), limit=0.9)
    kept = [g.channels // 2 for g in groups]
    remove(net, groups, plan.removed(kept))
    assert plan.space.cost(kept) == backbone()
