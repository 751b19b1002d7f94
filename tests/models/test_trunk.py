"""Trunks that two networks share, against the networks put together by hand."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hybridprune.measure.cost import count
from hybridprune.models.backbone import Backbone
from hybridprune.models.cascade import Cascade
from hybridprune.models.cascade_spec import CascadeSpec
from hybridprune.models.spec import NetworkSpec
from hybridprune.models.trunk import Tail, graft, run_until, trunk_names

KINDS = {"resnet": (8, 14, 20), "preresnet": (8, 14, 20), "pyramidnet": (8, 8, 8)}
SIZE = 8


def whole(network: str, trunks: tuple[int, ...]) -> tuple[CascadeSpec, list[Backbone]]:
    """A specification, and its members before they share anything, with weights and statistics of their own."""
    specs = tuple(NetworkSpec(network, depth, 4, 5, pyramid_alpha=8) for depth in KINDS[network][: len(trunks)])
    members: list[Backbone] = []
    for seed, spec in enumerate(specs):
        torch.manual_seed(seed)
        net = spec.build().backbone.eval()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean = torch.randn_like(module.running_mean) / 4  # type: ignore[arg-type]
        members.append(net)
    return CascadeSpec(specs, trunks=trunks), members


def joined(network: str, trunks: tuple[int, ...]) -> tuple[Cascade, list[Backbone]]:
    spec, members = whole(network, trunks)
    net = spec.joined(copy.deepcopy(members)).eval()
    net.temperatures.copy_(torch.linspace(0.5, 2, len(members)))
    return net, members


def by_hand(members: Sequence[Backbone], trunks: Sequence[int], images: Tensor) -> list[Tensor]:
    """Each member's logits: up to block k it is the next member, where that has a trunk of k blocks."""
    found: list[Tensor] = []
    for place in range(len(members)):
        owners = [place] * len(members[place].blocks)
        stem, shared = place, len(owners)
        for dearer in range(place + 1, len(members)):
            if trunks[dearer] == 0:
                break
            stem, shared = dearer, min(shared, trunks[dearer])
            owners[:shared] = [dearer] * shared
        x = members[stem].stem(images)
        for index, owner in enumerate(owners):
            x = members[owner].blocks[index](x)
        found.append(members[place].head(x))
    return found


@pytest.mark.parametrize("network", KINDS)
@given(trunks=st.sampled_from([(0, 1), (0, 2), (0, 1, 0), (0, 0, 1), (0, 1, 2), (0, 1, 1)]), data=st.data())
@settings(max_examples=12, deadline=None)
def test_masked_and_executed_are_the_whole_networks_with_their_trunks(
    network: str, trunks: tuple[int, ...], data: st.DataObject
) -> None:
    if network != "pyramidnet" and 2 in trunks and trunks[-1] == 2:
        trunks = (0, 1)  # block 1 of the least deep one ends its second stage
    net, members = joined(network, trunks)
    assert net.trunks == trunks and net.shares_trunk
    images = torch.randn(5, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    gates = len(trunks) - 1
    routes = data.draw(st.lists(st.lists(st.integers(0, 1), min_size=gates, max_size=gates), min_size=5, max_size=5))
    wanted = torch.tensor(routes).float().reshape(5, gates)
    ran = 1 + wanted.cumprod(1).sum(1).long()
    with torch.no_grad():
        own = by_hand(members, trunks, images)
        torch.testing.assert_close(net.own_logits(images), torch.stack(own))
        calibrated = [each / t for each, t in zip(own, net.temperatures, strict=True)]
        answers = torch.stack([torch.stack(calibrated[:n]).mean(0) for n in range(1, len(trunks) + 1)])
        expected = answers[ran - 1, torch.arange(5)]
        for mode in ("masked", "executed"):
            torch.testing.assert_close(net(images, wanted, mode).logits, expected)


def test_the_trunk_is_counted_once_and_stored_once() -> None:
    spec, (_, large) = whole("resnet", (0, 1))
    apart, shared = CascadeSpec(spec.members).build(), spec.build()
    own, mine = count(apart, SIZE), count(shared, SIZE)
    # stem: 3 -> 4 channels, block 0: twice 4 -> 4, on 8 x 8 positions
    trunk = 9 * (3 * 4 + 2 * 4 * 4) * SIZE**2
    gate = shared.gate.inputs
    assert own.start_macs == mine.start_macs, "both networks have the same first block here"
    assert mine.block_macs == (own.block_macs[0] - trunk,)
    assert mine.expected_macs([0.25]) == own.start_macs + gate + 0.25 * (own.block_macs[0] - trunk)
    parameters = sum(p.numel() for name in trunk_names(large, 1) for p in large.get_submodule(name).parameters())
    assert parameters == 9 * (3 * 4 + 2 * 4 * 4) + 2 * 3 * 4
    assert mine.backbone_params == own.backbone_params - parameters
    state = shared.state_dict()
    assert len({value.data_ptr() for value in state.values() if value.numel()}) == len(
        [value for value in state.values() if value.numel()]
    )
    again = spec.build()
    again.load_state_dict(state)  # strict
    assert not any(name.startswith(("members.1.backbone.conv", "members.1.backbone.bn")) for name in state)


def test_a_tail_runs_alone_and_is_given_the_features_of_its_trunk() -> None:
    net, (_, large) = joined("resnet", (0, 1))
    x = torch.randn(3, 3, SIZE, SIZE)
    tail = net.members[1]
    assert isinstance(tail, Tail) and len(tail.backbone.blocks) == 5
    with torch.no_grad():
        features, _ = run_until(net.members[0], x, 1)
        torch.testing.assert_close(tail(features), large(x))
        seen: list[int] = []
        tail.backbone.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
        net(x, torch.tensor([[1.0], [0.0], [1.0]]), "executed")
        assert seen == [2]
        net(x, torch.zeros(3, 1), "executed")
        assert seen == [2]


def test_nobody_has_features_where_nobody_went_on() -> None:
    net, _ = joined("resnet", (0, 1, 1))
    x = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        state = net.start(x)
        stopped = net.advance(net.advance(state, torch.zeros(2), "executed"), torch.zeros(2), "masked")
        assert torch.equal(net.finish(stopped), state.features)
        assert state.trunk is not None and net.advance(state, torch.ones(2), "executed").trunk is not None


def test_features_are_carried_only_where_a_member_goes_on_from_them() -> None:
    net, _ = joined("resnet", (0, 1, 0))
    state = net.start(torch.randn(2, 3, SIZE, SIZE))
    assert state.trunk is not None and state.trunk.shape == (2, 4, SIZE, SIZE)
    assert net.advance(state, torch.ones(2), "masked").trunk is None
    plain, _ = joined("resnet", (0, 0))
    assert plain.start(torch.randn(2, 3, SIZE, SIZE)).trunk is None and not plain.shares_trunk


@pytest.mark.parametrize(("trunk", "said"), [(3, "a trunk of 3 blocks"), (7, "a trunk of 7"), (-1, "a trunk of -1")])
def test_a_trunk_that_is_not_there_is_refused(trunk: int, said: str) -> None:
    _, (small, large) = whole("resnet", (0, 0))
    with pytest.raises(ValueError, match=said):
        graft(large, small, trunk)


def test_networks_of_two_kinds_and_stems_of_unknown_parts_are_refused() -> None:
    (small, large), (other, _) = whole("resnet", (0, 0))[1], whole("preresnet", (0, 0))[1]
    with pytest.raises(ValueError, match="a ResNet cannot go on from a PreResNet"):
        graft(other, small, 1)
    with pytest.raises(ValueError, match="cannot go on from a Linear"):
        graft(nn.Linear(2, 2), nn.Linear(2, 2), 1)
    large.stem_parts = ()
    with pytest.raises(ValueError, match="set its stem_parts"):
        graft(large, small, 1)
