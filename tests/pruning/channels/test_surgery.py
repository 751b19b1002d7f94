"""Removing channels: the same function as with the channels silenced; never wrong, and undone where it would be."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
import torchvision
from torch import Tensor, nn

from hybridprune.models.edits import apply_edits, edits_between
from hybridprune.pruning.channels import (
    ChannelGroup,
    Member,
    channel_groups,
    remove_channels,
)
from hybridprune.pruning.channels.surgery import cut
from tests.networks_and_images import random_net
from tests.pruning.channels.networks import (
    NETS,
    SIZE,
    Odd,
    assert_same_as_silenced,
    groups_of,
    logits,
    randomised,
    remove,
    resnet,
    run,
    silence,
    some_channels,
)


@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_the_cut_network_computes_what_the_silenced_one_does(name: str, coupled: bool) -> None:
    net = NETS[name]()
    groups = [g for g in groups_of(net, coupled=coupled) if g.of("norm")]
    if name == "branches":  # what comes out of the excitation is not zero for a silenced channel, but multiplies one
        groups = [g for g in groups if g.name != "squeeze"]
    assert_same_as_silenced(net, groups)


@pytest.mark.exhaustive
@pytest.mark.full
def test_densenet() -> None:
    """Others of torchvision's networks are in test_torchvision_widths.py."""
    torch.manual_seed(0)
    net = randomised(torchvision.models.densenet121())
    groups = groups_of(net, 32)
    assert len(groups) == 120
    assert_same_as_silenced(net, groups, 32)


def test_what_stays_is_the_same_to_the_bit() -> None:
    net = resnet()
    groups = groups_of(net, coupled=False)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    remove(net, groups, [torch.tensor([2, 0])] + [torch.tensor([], dtype=torch.int64)] * 5)
    for name, tensor in net.state_dict().items():
        expected = before[name]
        if name.startswith("backbone.blocks.0.conv1") or (name.startswith("backbone.blocks.0.bn1") and expected.ndim):
            expected = expected[[1, 3]]
        if name == "backbone.blocks.0.conv2.weight":
            expected = expected[:, [1, 3]]
        assert torch.equal(tensor, expected)


def test_nothing_removed_changes_nothing() -> None:
    net = resnet()
    parameters = dict(net.named_parameters())
    groups = groups_of(net)
    remove(net, groups, [torch.tensor([], dtype=torch.int64) for _ in groups])
    assert all(parameters[name] is p for name, p in net.named_parameters())


def test_no_trace_is_left() -> None:
    net = random_net(8, 4).train()
    net.backbone.blocks[0].eval()
    for name, p in net.named_parameters():
        p.requires_grad_("conv1" not in name)
    before = copy.deepcopy(net.state_dict())
    groups = groups_of(net)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    remove(net, groups, [torch.tensor([0])] * len(groups))
    assert {name: p.requires_grad for name, p in net.named_parameters()} == {
        name: "conv1" not in name for name, _ in net.named_parameters()
    }
    quiet = set(net.backbone.blocks[0].modules())
    for module in net.modules():
        assert module.training == (module not in quiet)
        assert not (module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)
    assert all(p.grad is None and p.is_leaf for p in net.parameters())


def test_a_depthwise_convolution_may_end_with_one_channel() -> None:
    """Where it has the looks of any other, it passes on what it is given all the same."""
    torch.manual_seed(0)
    depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 1), depthwise, nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1), nn.Flatten(), nn.Linear(192, 5)
    )
    fresh = copy.deepcopy(net)
    groups = channel_groups(net, run, torch.randn(1, 3, 8, 8), exclude=("3",), coupled=False)
    assert [group.name for group in groups] == ["0"]
    silenced = copy.deepcopy(net)
    with torch.no_grad():
        silenced[3].get_parameter("weight")[:, [0, 1, 3]] = 0
    remove_channels(net, groups, [torch.tensor([0, 1, 3])], run, torch.randn(1, 3, 8, 8))
    images = torch.randn(2, 3, 8, 8)
    assert isinstance(net[1], nn.Conv2d) and net[1].weight.shape == (1, 1, 3, 3)
    torch.testing.assert_close(net.eval()(images), silenced.eval()(images))
    apply_edits(fresh, edits_between(fresh, net))
    fresh.load_state_dict(net.state_dict(), strict=True)
    assert torch.equal(fresh.eval()(images), net(images))


def test_edits_rebuild_the_cut_network() -> None:
    for name, build in NETS.items():
        net, fresh = build(), build()
        groups = groups_of(net)
        remove(net, groups, some_channels(groups))
        edits = edits_between(fresh, net)
        assert edits
        apply_edits(fresh, edits)
        fresh.load_state_dict(net.state_dict(), strict=True)
        assert torch.equal(logits(fresh, SIZE), logits(net, SIZE)), name


@pytest.mark.full
def test_a_second_cut_of_the_same_network() -> None:
    net = resnet()
    for seed in range(2):
        groups = groups_of(net)
        assert len(groups) == 9
        removed = [index[:1] for index in some_channels(groups, seed)]
        silenced = silence(net, groups, removed)
        remove(net, groups, removed)
        assert torch.allclose(logits(net, SIZE), logits(silenced, SIZE), rtol=1e-5, atol=1e-5)


def test_the_update_comes_before_the_cut() -> None:
    net = random_net(8, 4)
    groups = groups_of(net, coupled=False)
    seen: list[tuple[str, list[int]]] = []

    @torch.no_grad()
    def update(group: ChannelGroup, removed: Tensor) -> None:
        seen.append((group.name, removed.tolist()))
        layer = net.get_submodule(group.name)
        assert isinstance(layer, nn.Conv2d) and layer.out_channels == group.channels
        layer.weight.fill_(7.0)

    remove(net, groups, [torch.tensor([1]), torch.tensor([], dtype=torch.int64), torch.tensor([3, 2])], update=update)
    assert seen == [(groups[0].name, [1]), (groups[2].name, [3, 2])]
    weight = net.get_submodule(groups[2].name).get_parameter("weight")
    assert weight.shape[0] == 14 and bool((weight == 7).all())


@pytest.mark.parametrize("role", ["consumer", "norm"])
def test_a_permuted_index_is_refused(role: str) -> None:
    net = resnet(8)
    groups = groups_of(net, coupled=False)
    members = tuple(
        dataclasses.replace(m, index=m.index.roll(1, 0)) if m.role == role else m for m in groups[0].members
    )
    wrong = [dataclasses.replace(groups[0], members=members), *groups[1:]]
    removed = some_channels(groups, seed=3)
    removed[0] = torch.tensor([0, 1])
    before = copy.deepcopy(net.state_dict())
    if role == "consumer":
        with pytest.raises(ValueError, match="wired"):
            remove(net, wrong, removed)
        assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    silenced = silence(net, groups, removed)
    cut(net, wrong, removed)
    assert not torch.allclose(logits(net, SIZE), logits(silenced, SIZE), rtol=1e-3)


def test_a_removal_that_the_networks_code_does_not_allow_is_refused() -> None:
    """Swapped halves: any channels can go whose removal leaves the halves equal; for others all sizes fit, wrongly."""

    def net() -> nn.Module:
        return Odd(lambda x: torch.cat(x.chunk(2, 1)[::-1], 1), 8)

    stem = torch.arange(8)[:, None]
    group = ChannelGroup(
        "stem", 8, False, (Member("stem", "producer", stem), Member("head.0", "consumer", stem.roll(4, 0)))
    )
    remove(net(), [group], [torch.tensor([0, 5])])
    with pytest.raises(ValueError, match="wired"):
        remove(net(), [group], [torch.tensor([0])])
