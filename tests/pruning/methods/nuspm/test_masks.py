"""Masks: the same function as with what is read multiplied by them, folded or cut away, and their gradient."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hybridprune.measure.cost import count, module_macs
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.pruning.channels import ChannelGroup, channel_space, remove_channels
from hybridprune.pruning.channels.surgery import cut
from hybridprune.pruning.methods.nuspm.masks import (
    INITIAL,
    ChannelMask,
    attach_masks,
    attached_masks,
    mask_parameters,
    unread,
)
from hybridprune.pruning.sparse_training.masked_reading import fold_masks
from tests.networks_and_images import random_decisions, random_images, random_net
from tests.pruning.channels.networks import NETS, groups_of, run
from tests.pruning.random_curvature import cost_of

SIZE = 8


def doubled(name: str) -> nn.Module:
    """A network in double precision; gates compute in single precision whatever they are."""
    net = NETS[name]()
    (net.backbone if isinstance(net, GatedNetwork) else net).double()
    return net


def scrambled(masks: Mapping[str, ChannelMask], seed: int = 0, empty: Sequence[int] = ()) -> None:
    """Random scalars around the threshold; the groups ``empty`` keep no channel."""
    draw = torch.Generator().manual_seed(seed)
    for number, mask in enumerate(masks.values()):
        with torch.no_grad():
            mask.scalars.copy_(torch.rand(mask.scalars.shape, generator=draw))
            mask.scalars[0], mask.scalars[-1] = 0.7, 0.3
            if number in empty:
                mask.scalars.fill_(0.2)


def images() -> Tensor:
    return random_images(6, SIZE, seed=1).double()


def logits(net: nn.Module) -> Tensor:
    """Those of a gated network for given decisions, so that no rounding changes one."""
    if isinstance(net, GatedNetwork):
        return net(images(), random_decisions(6, net.num_gates).double()).logits
    return net(images())


def furthest(one: Tensor, other: Tensor) -> float:
    return float((one - other).detach().abs().max())


def multiplied(net: nn.Module, groups: Sequence[ChannelGroup], masks: Mapping[str, Tensor]) -> nn.Module:
    """A copy of the plain network in which what each layer reads is multiplied by its group's mask ``[channels]``."""
    net = copy.deepcopy(net)

    def multiply(index: Tensor, mask: Tensor) -> Any:
        def hook(layer: nn.Module, args: tuple[Tensor]) -> Tensor:
            (x,) = args
            channels = x.shape[-1] if isinstance(layer, nn.Linear) else x.shape[1]
            scale = x.new_ones(channels).index_put((index,), mask[:, None].expand_as(index).to(x.dtype))
            return x * (scale if isinstance(layer, nn.Linear) else scale[:, None, None])

        return hook

    for group in groups:
        for member in group.of("consumer"):
            net.get_submodule(member.layer).register_forward_pre_hook(multiply(member.index, masks[group.name]))
    return net


def removable(net: nn.Module, groups: Sequence[ChannelGroup]) -> list[Tensor]:
    """What nobody reads, but for the first channel of a group of which nothing is read."""
    found = [unread(net, group) for group in groups]
    return [gone.nonzero().flatten()[int(gone.all()) :] for gone in found]


@pytest.mark.parametrize("name", NETS)
def test_masks_multiply_what_is_read_forwards_and_backwards(name: str) -> None:
    net = doubled(name)
    groups = groups_of(net)
    explicit = {g.name: torch.ones(g.channels, dtype=torch.float64) for g in groups}
    masked = copy.deepcopy(net)
    masks = attach_masks(masked, groups)
    assert torch.equal(logits(masked), logits(net))
    scrambled(masks)
    for group, mask in masks.items():
        assert mask().unique().tolist() == [0.0, 1.0]
        explicit[group] = mask().detach().requires_grad_()
    weights = torch.randn(6, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected = logits(multiplied(net, groups, explicit))
    found = logits(masked)
    assert furthest(found, expected) < 1e-13
    assert furthest(found, logits(net)) > 1e-3
    wanted = torch.autograd.grad((expected * weights).sum(), list(explicit.values()))
    got = torch.autograd.grad((found * weights).sum(), [mask.scalars for mask in masks.values()])
    for one, other in zip(got, wanted, strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-12)
    assert any(bool((gradient[~mask.kept] != 0).any()) for gradient, mask in zip(got, masks.values(), strict=True))


def test_a_stage_shares_its_mask_and_the_first_block_has_one_of_its_own() -> None:
    net = random_net(14, 4)
    masks = attach_masks(net, groups_of(net))
    inner = {f"backbone.blocks.{i}.conv1": width for i, width in enumerate((4, 4, 8, 8, 16, 16))}
    stages = {"backbone.conv": 4, "backbone.blocks.2.conv2": 8, "backbone.blocks.4.conv2": 16}
    assert {name: len(mask.scalars) for name, mask in masks.items()} == inner | stages
    assert all(bool((mask.scalars == INITIAL).all()) for mask in masks.values())
    names = mask_parameters(net)
    assert names == [name for name, _ in net.named_parameters() if "mask" in name] and len(names) == 9
    assert set(names) <= {name for name, _ in net.backbone.named_parameters(prefix="backbone")}


@pytest.mark.parametrize("empty", [(), (0,), (1, 4, 8), tuple(range(9))], ids=str)
@pytest.mark.parametrize("name", NETS)
def test_reconfiguring_is_exact(name: str, empty: tuple[int, ...]) -> None:
    net = doubled(name)
    names = [name for name, _ in net.named_parameters()]
    groups = groups_of(net)
    masks = attach_masks(net, groups)
    scrambled(masks, empty=empty)
    expected, kept = logits(net), {group: mask.kept for group, mask in masks.items()}
    fold_masks(net)
    # Optimisers know parameters by their order.
    assert not attached_masks(net) and [name for name, _ in net.named_parameters()] == names
    assert torch.equal(logits(net), expected)
    for group in groups:
        assert torch.equal(unread(net, group), ~kept[group.name])
    removed = removable(net, groups)
    example = random_images(1, SIZE).double()
    remove_channels(net, groups, removed, run, example)
    assert furthest(logits(net), expected) < 1e-10
    for group, gone in zip(groups, removed, strict=True):
        assert group.channels - len(gone) == max(1, int(kept[group.name].sum()))


def test_macs_of_the_masks_are_those_of_the_reconfigured_network() -> None:
    net = random_net(14, 4)
    groups = groups_of(net, exclude=("gate.*",))
    macs = {name: m for name, m in module_macs(net, SIZE).items() if name.startswith("backbone.")}
    space = channel_space(net, groups, [torch.zeros(g.channels) for g in groups], macs, cost_of(net), limit=0.9).space
    masks = attach_masks(net, groups)
    scrambled(masks, empty=(3,))
    promised = space.cost([max(1, int(mask.kept.sum())) for mask in masks.values()])
    fold_masks(net)
    remove_channels(net, groups, removable(net, groups), run, random_images(1, SIZE))
    assert (promised.macs, promised.params) == (count(net, SIZE).backbone_macs, count(net, SIZE).backbone_params)
    assert promised.macs < space.cost(space.everything()).macs


@pytest.mark.parametrize("role", ["producer", "norm", "consumer"])
def test_a_permuted_index_within_a_residual_group_is_lossy(role: str) -> None:
    net = doubled("resnet")
    groups = groups_of(net)
    masks = attach_masks(net, groups)
    scrambled(masks)
    expected = logits(net)
    fold_masks(net)
    number = next(i for i, g in enumerate(groups) if g.coupled)
    removed = removable(net, groups)
    assert 0 < len(removed[number]) < groups[number].channels
    first = next(m for m in groups[number].members if m.role == role)
    members = tuple(
        dataclasses.replace(m, index=m.index.roll(1, 0)) if m is first else m for m in groups[number].members
    )
    groups[number] = dataclasses.replace(groups[number], members=members)
    cut(net, groups, removed)
    assert furthest(logits(net), expected) > 1e-4


def test_masked_filters_get_no_gradient_and_the_layers_that_read_them_neither() -> None:
    net = doubled("resnet")
    groups = groups_of(net)
    masks = attach_masks(net, groups)
    scrambled(masks)
    logits(net).square().sum().backward()
    kept = masks["backbone.blocks.0.conv1"].kept
    reader = net.get_submodule("backbone.blocks.0.conv2").get_parameter("parametrizations.weight.original").grad
    filters = net.get_submodule("backbone.blocks.0.conv1").get_parameter("parametrizations.weight.original").grad
    assert reader is not None and filters is not None
    assert not reader[:, ~kept].any() and not filters[~kept].any()
    assert bool(reader[:, kept].flatten(2).any(2).any(0).all()) and bool(filters[kept].flatten(1).any(1).all())


def test_a_copy_has_masks_of_its_own_and_its_state_can_be_loaded() -> None:
    net = random_net(8, 4)
    masks = attach_masks(net, groups_of(net))
    other = copy.deepcopy(net)
    scrambled(attached_masks(other))
    x, decisions = random_images(6, SIZE), random_decisions(6, net.num_gates)
    changed, before = other(x, decisions).logits, net(x, decisions).logits
    assert not torch.allclose(changed, before)
    net.load_state_dict(other.state_dict())
    assert torch.equal(net(x, decisions).logits, changed)
    assert all(torch.equal(mask.kept, attached_masks(other)[name].kept) for name, mask in masks.items())


def test_counting_a_masked_network_takes_no_time_and_its_macs_stay() -> None:
    net = random_net(14, 4)
    before = count(net, SIZE)
    attach_masks(net, groups_of(net))
    after = count(net, SIZE)
    assert (after.backbone_macs, after.gate_macs) == (before.backbone_macs, before.gate_macs)


def test_scalars_at_the_threshold_are_masked() -> None:
    mask = ChannelMask(torch.zeros(1), 3)
    with torch.no_grad():
        mask.scalars.copy_(torch.tensor([0.5, 0.50001, -3.0]))
    assert mask().tolist() == [0, 1, 0]
    (gradient,) = torch.autograd.grad((mask() * torch.tensor([2.0, 3.0, 5.0])).sum(), mask.scalars)
    assert gradient.tolist() == [2, 3, 5]
