"""Removing channels: the same function as with the channels silenced, at the cost that was promised; never wrong."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import hypothesis
import pytest
import torch
import torchvision
from hypothesis import strategies as st
from torch import Tensor, nn

from hybridprune.measure.cost import module_macs
from hybridprune.models.edits import apply_edits, edits_between
from hybridprune.models.pyramidnet import PyramidNet
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.pruning.budget.space import Cost
from hybridprune.pruning.channels import (
    ChannelGroup,
    ChannelSpace,
    Member,
    channel_groups,
    channel_space,
    remove_channels,
)
from hybridprune.pruning.channels.nan_tracing import OUTPUT, SEVERAL, trace_wiring
from hybridprune.pruning.channels.surgery import cut
from tests.cases import random_decisions, random_images, random_net, randomise

SIZE = 8


def run(model: nn.Module, images: Tensor) -> object:
    if isinstance(model, GatedNetwork):
        return model(images, images.new_ones(len(images), model.num_gates))
    return model(images)


def groups_of(
    model: nn.Module, size: int = SIZE, exclude: Sequence[str] = (), coupled: bool = True
) -> list[ChannelGroup]:
    return channel_groups(model, run, _example(model, size), exclude=exclude, coupled=coupled)


def _example(model: nn.Module, size: int) -> Tensor:
    return random_images(1, size).to(next(model.parameters()))


def remove(
    model: nn.Module, groups: Sequence[ChannelGroup], removed: Sequence[Tensor], size: int = SIZE, **more: Any
) -> None:
    remove_channels(model, groups, removed, run, _example(model, size), **more)


def some_channels(groups: Sequence[ChannelGroup], seed: int = 0) -> list[Tensor]:
    """From each group up to three channels in four, in no order."""
    draw = torch.Generator().manual_seed(seed)
    return [
        torch.randperm(g.channels, generator=draw)[: int(torch.randint(3 * g.channels // 4 + 1, (), generator=draw))]
        for g in groups
    ]


@torch.no_grad()
def silence(model: nn.Module, groups: Sequence[ChannelGroup], removed: Sequence[Tensor]) -> nn.Module:
    """A copy whose BatchNorms give exact zeros in the channels."""
    model = copy.deepcopy(model)
    for group, index in zip(groups, removed, strict=True):
        assert group.of("norm")
        for member in group.of("norm"):
            norm = model.get_submodule(member.layer)
            for parameter in norm.parameters():
                parameter[member.index[index].flatten()] = 0
    return model


@torch.no_grad()
def logits(model: nn.Module, size: int) -> Tensor:
    images = random_images(6, size, seed=1).to(next(model.parameters()))
    if isinstance(model, GatedNetwork):
        routed = model(images, random_decisions(6, model.num_gates).to(images))
        return torch.cat([routed.logits, routed.gate_logits], 1)
    return model(images)


def assert_same_as_silenced(model: nn.Module, groups: Sequence[ChannelGroup], size: int = SIZE) -> None:
    removed = some_channels(groups)
    assert sum(map(len, removed)) > 0
    silenced = silence(model, groups, removed)
    expected, before = logits(silenced, size), logits(model, size)
    remove(model, groups, removed, size)
    found = logits(model, size)
    scale = float(expected.abs().max())
    assert float((found - expected).abs().max()) < 1e-5 * scale
    assert float((before - expected).abs().max()) > 1e-4 * scale


def randomised(model: nn.Module) -> nn.Module:
    """In eval mode, with random BatchNorms."""
    randomise(model)
    return model


def resnet(depth: int = 14) -> GatedNetwork:
    return random_net(depth)


class Vgg(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
            *(nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)),
            *(nn.Flatten(), nn.Linear(8 * 16, 7), nn.ReLU(), nn.Linear(7, 5)),
        )


class Branches(nn.Module):
    """Concatenation, squeeze and excitation, a depthwise convolution and a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.bn_left = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.right, self.bn_right = nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5)
        self.depthwise, self.bn = nn.Conv2d(9, 9, 3, padding=1, groups=9), nn.BatchNorm2d(9)
        self.mix, self.bn_mix = nn.Conv2d(9, 6, 1), nn.BatchNorm2d(6)
        self.more, self.bn_more = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.squeeze, self.excite = nn.Conv2d(6, 3, 1), nn.Conv2d(3, 6, 1)
        self.classifier = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.bn_left(self.left(x)).relu(), self.bn_right(self.right(x)).relu()], 1)
        x = self.bn_mix(self.mix(self.bn(self.depthwise(x)).relu()))
        y = self.bn_more(self.more(x)).relu()
        y = y * self.excite(self.squeeze(y.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return self.classifier((x + y).mean((2, 3)))


NETS: dict[str, Callable[[], nn.Module]] = {
    "resnet": resnet,
    "vgg": lambda: randomised(Vgg()),
    "branches": lambda: randomised(Branches()),
}


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


@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_the_cut_network_computes_what_the_silenced_one_does(name: str, coupled: bool) -> None:
    net = NETS[name]()
    groups = [g for g in groups_of(net, coupled=coupled) if g.of("norm")]
    if name == "branches":  # what comes out of the excitation is not zero for a silenced channel, but multiplies one
        groups = [g for g in groups if g.name != "squeeze"]
    assert_same_as_silenced(net, groups)


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


class Odd(nn.Module):
    """A stem, something odd, and a head."""

    def __init__(self, odd: Callable[[Tensor], Tensor], channels: int, head: nn.Module | None = None) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.odd = odd
        self.head = nn.Sequential(head or nn.Conv2d(channels, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.classifier = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.head(self.odd(self.stem(x))).mean((2, 3)))


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


def test_padded_shortcuts_leave_the_inner_channels() -> None:
    groups = groups_of(PyramidNet(14, 4, 5, 12), 32)
    assert [g.name for g in groups] == [f"blocks.{i}.residual.conv1" for i in range(6)]
    net = randomised(PyramidNet(14, 4, 5, 12))
    assert_same_as_silenced(net, groups_of(net, 32), 32)


def test_wiring_tells_channels_apart() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
            self.c = nn.Conv2d(5, 2, 1)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            a, b = self.a(x), self.b(x)
            a, b = a + torch.stack([b[:, 0], a[:, 0] * 0 + 1, b[:, 2]], 1), b
            return {"out": self.c(torch.cat([a, b[:, 1:]], 1)), "direct": b.relu()}

    found = trace_wiring(
        Net(), run, torch.randn(1, 3, 4, 4), {"a": torch.tensor([0, 9, 7]), "b": torch.tensor([3, 4, 7])}
    )
    assert found["c"].tolist() == [3, 9, 7, 4, 7]
    assert found["a"].tolist() == found["b"].tolist() == [0, 0, 0]
    assert found[OUTPUT].tolist() == [3, 4, 7]
    mixed = trace_wiring(
        Net(), run, torch.randn(1, 3, 4, 4), {"a": torch.tensor([1, 2, 3]), "b": torch.tensor([4, 5, 6])}
    )
    assert mixed["c"].tolist() == [SEVERAL, SEVERAL, SEVERAL, 5, 6]


@pytest.mark.parametrize("named", [False, True])
def test_wiring_of_outputs_that_are_numbers(named: bool) -> None:
    """A number for each image carries its marks; one of the whole batch mixes those of all channels that it reads."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 2, 1)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            a = self.a(x)
            return {"each": a[:, 0].mean((1, 2))} if named else {"each": a[:, 0].mean((1, 2)), "all": a[:, 1].mean()}

    found = trace_wiring(Net(), run, torch.randn(1, 3, 4, 4), {"a": torch.tensor([5, 6])})
    assert found[OUTPUT].tolist() == ([5] if named else sorted([SEVERAL, 5]))
