"""MaskSparsity in residual stages: whom it pushes, whom it selects, and that the dead can go without loss."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hybridprune
from hybridprune.api import prune as compress
from hybridprune.config import CutOptions, SparsityOptions
from hybridprune.errors import UserError
from hybridprune.measure.cost import count_module
from hybridprune.pruning.budget.space import Budget, Cost
from hybridprune.pruning.channels import ChannelGroup, channel_groups, channel_space, remove_channels
from hybridprune.pruning.channels.surgery import cut
from hybridprune.pruning.directions.layers import layer_macs
from hybridprune.pruning.methods.masksparsity import method as masksparsity
from hybridprune.pruning.sparse_training.protocol import Target
from tests.networks_and_images import random_images, random_net

WEIGHT = 2.0**-11
"""Exact in sums with multiples of itself."""
OPTIONS = SparsityOptions(sparsity_weight=WEIGHT)


def run(model: nn.Module, images: Tensor) -> Any:
    return model(images)


def target_of(net: nn.Module, budget: float | None = None, removed: dict[str, list[int]] | None = None) -> Target:
    example = random_images(1)
    groups = channel_groups(net, run, example, exclude=(), coupled=True)
    whole = Cost(*count_module(net, example))
    macs = layer_macs(net, lambda: net(example))
    space = channel_space(net, groups, [torch.zeros(g.channels) for g in groups], macs, whole, limit=1.0).space
    allowed = None if budget is None else Budget(macs=budget * space.cost(space.everything()).macs)
    return Target(net, groups, space, allowed, removed or {})


def residual(target: Target) -> ChannelGroup:
    """The first stage: the stem's BatchNorm and those at the ends of its blocks."""
    group = next(group for group in target.groups if group.coupled)
    assert len(group.of("norm")) == 3
    return group


def norms_of(net: nn.Module, group: ChannelGroup) -> list[nn.BatchNorm2d]:
    found = [net.get_submodule(member.layer) for member in group.of("norm")]
    return [norm for norm in found if isinstance(norm, nn.BatchNorm2d)]


def random_gradients(net: nn.Module) -> dict[str, Tensor]:
    for parameter in net.parameters():
        parameter.grad = torch.randint(-99, 99, parameter.shape).float() * WEIGHT
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("masked", [False, True])
def test_the_gradient_changes_by_lambda_sign_gamma_where_it_is_to_and_nowhere_else(masked: bool) -> None:
    torch.manual_seed(0)
    net = random_net(14).backbone
    target = target_of(net)
    group = residual(target)
    inner = next(g for g in target.groups if not g.coupled)
    target = dataclasses.replace(target, removed={group.name: [0, 2], inner.name: [1]})
    pushed = {member.layer: [0, 2] for member in group.of("norm")} | {m.layer: [1] for m in inner.of("norm")}
    prepare = masksparsity.prepare_masked if masked else masksparsity.prepare_all
    drive = prepare(target, OPTIONS)
    assert not drive.lr_factors and not drive.undecayed
    before = random_gradients(net)
    drive.pressure.add_gradients(0.5)
    changed = set()
    for name, parameter in net.named_parameters():
        layer, _, kind = name.rpartition(".")
        expected = torch.zeros_like(parameter)
        if kind == "weight" and isinstance(net.get_submodule(layer), nn.BatchNorm2d):
            places = pushed.get(layer, []) if masked else range(len(parameter))
            for place in places:
                expected[place] = WEIGHT if parameter[place] > 0 else -WEIGHT
        assert parameter.grad is not None and torch.equal(parameter.grad - before[name], expected), name
        changed |= {name} if expected.any() else set()
    assert len(changed) == (4 if masked else sum(isinstance(m, nn.BatchNorm2d) for m in net.modules()))


@torch.no_grad()
def with_scales(net: nn.Module, group: ChannelGroup, rows: Sequence[Sequence[float]]) -> None:
    """Large scales everywhere, but for the first entries of a group's BatchNorms."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.fill_(-1.0)
    for norm, row in zip(norms_of(net, group), rows, strict=bool(rows)):
        norm.weight[: len(row)] = torch.tensor(row)


def test_a_stage_loses_what_its_batchnorms_vote_for() -> None:
    net = random_net(14).backbone
    target = target_of(net)
    group = residual(target)
    with_scales(net, group, [[0.001, -0.002, 1, 0.003], [0.01, 0.005, -0.004, 1], [1, 1e-9, 0.011, 0]])
    found = masksparsity.select(target, OPTIONS)
    # The third BatchNorm wants to lose two channels, 1 and 3. Only 1 is wanted by all, 0, 1 and 3 by two at least.
    assert {name: channels for name, channels in found.items() if channels} == {group.name: [0, 1, 3]}
    less = masksparsity.select(target, dataclasses.replace(OPTIONS, mask_threshold=0.0045))
    # 0, 1, 3 and 2 and 1, 3: nothing is wanted by all, 1 and 3 by two, and that is more than one.
    assert {name: channels for name, channels in less.items() if channels} == {group.name: [1, 3]}


def test_the_energy_rule() -> None:
    net = random_net(14).backbone
    target = target_of(net)
    group = residual(target)
    with_scales(net, group, [[0.01, 0.02, 1]] * 3)
    rest = group.channels - 2
    shares = [1e-4 / (rest + 5e-4), 5e-4 / (rest + 5e-4)]
    for share, expected in ((shares[0] * 0.99, []), (shares[0] * 1.01, [0]), (shares[1] * 1.01, [0, 1])):
        found = masksparsity.select(target, SparsityOptions(mask_rule="energy", mask_threshold=share))
        assert found[group.name] == expected
    assert masksparsity.select(target, SparsityOptions(mask_rule="energy"))[group.name] == [0]


def test_a_budget_is_met() -> None:
    net = random_net(14).backbone
    for budget in (0.8, 0.5, 0.2):
        target = target_of(net, budget)
        removed = masksparsity.select(target, OPTIONS)
        kept = [group.channels - len(removed[group.name]) for group in target.groups]
        assert target.budget is not None and target.budget.allows(target.space.cost(kept))
        assert target.space.cost(kept).macs > (budget - 0.05) * target.space.cost(target.space.everything()).macs


def inverted(stem_norm: bool) -> nn.Sequential:
    """A depthwise convolution between two others, as in MobileNets."""
    widen = [nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6, affine=stem_norm), nn.ReLU()]
    narrow = [nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 1)]
    return nn.Sequential(*widen, *narrow)


@pytest.mark.parametrize("stem_norm", [True, False])
def test_a_batchnorm_behind_a_depthwise_convolution_takes_the_mask_of_the_one_before(stem_norm: bool) -> None:
    net = inverted(stem_norm)
    small = {4: torch.tensor([1e-4, 1, 1, 1e-4, 1e-4, 1])} | (
        {1: torch.tensor([1, 1e-4, 1, 1, 1, 1])} if stem_norm else {}
    )
    with torch.no_grad():
        for place, scale in small.items():
            net[place].get_parameter("weight").copy_(scale)
    target = target_of(net)
    removed = masksparsity.select(target, OPTIONS)
    assert removed == {"0": [1] if stem_norm else [0, 3, 4]}  # it votes only where there is no other
    pushed = masksparsity.doomed_scales(dataclasses.replace(target, removed=removed))
    assert all(places.tolist() == removed["0"] for _, places in pushed) and len(pushed) == 1 + stem_norm


@pytest.mark.parametrize("final", ["auto", "threshold", "mask"])
def test_what_goes_in_the_end(final: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = random_net(8).backbone
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.fill_(1.0)
    trained = iter([[1, 2, 5], [2, 4], []])  # what has receded: 1 and 5 stayed large, 4 was not pushed
    rates: list[float] = []

    def finetune(model: nn.Module, *args: Any, lr: float, **more: Any) -> None:
        rates.append(lr)
        with torch.no_grad():
            model.get_submodule("blocks.1.bn1").get_parameter("weight")[next(trained)] = 0.01

    monkeypatch.setattr(compress, "finetune", finetune)
    options = SparsityOptions(mask_final=final, sparse_lr=0.25)
    data = [(random_images(4), torch.zeros(4, dtype=torch.int64))]
    pruned = hybridprune.prune(net, data, method="masksparsity", sparsity=options, fine_tune=1.0, lr=0.5, kd_weight=0)
    gone = [1, 2, 5] if final == "mask" else [2, 4]
    filters = net.get_submodule("blocks.1.conv1").get_parameter("weight")
    kept = [channel for channel in range(len(filters)) if channel not in gone]
    assert pruned.module.get_submodule("blocks.1.conv1").get_parameter("weight").equal(filters[kept])
    assert rates == [0.25, 0.25, 0.5]


def test_a_mask_that_has_to_be_and_need_not_be() -> None:
    target = target_of(random_net(14).backbone)
    with_scales(target.model, residual(target), [])
    with pytest.raises(UserError, match=r"^--mask_final threshold: .* --mask_threshold 0.01 .*--mask_final mask"):
        masksparsity.select_again(dataclasses.replace(target, removed={"conv": [0]}), OPTIONS)
    bounded = target_of(target.model, budget=0.5, removed={"conv": [0]})
    assert masksparsity.select_again(bounded, OPTIONS) == {"conv": [0]}
    with pytest.raises(UserError, match=r"^--mask_final threshold: knows no budget"):
        masksparsity.prepare_all(bounded, dataclasses.replace(OPTIONS, mask_final="threshold"))


def test_channels_without_a_scale_are_refused() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False), nn.ReLU(), nn.Conv2d(4, 2, 1))
    with pytest.raises(UserError, match="channels of 0; add it to --exclude"):
        masksparsity.select(target_of(net), OPTIONS)


@torch.no_grad()
def logits(net: nn.Module) -> Tensor:
    return net(random_images(4, seed=3))


def dead(shift: float = 0.0) -> tuple[nn.Module, list[ChannelGroup], list[Tensor]]:
    """A network whose selected channels, in residual stages and within blocks, have no scale left, but a shift."""
    net = random_net(14).backbone.eval()
    target = target_of(net)
    removed = []
    with torch.no_grad():
        for number, group in enumerate(target.groups):
            removed.append(torch.tensor([number % 2, 3]))
            for member, norm in zip(group.of("norm"), norms_of(net, group), strict=True):
                norm.weight[member.index[removed[-1]].flatten()] = 0.0
                norm.bias[member.index[removed[-1]].flatten()] = shift
    assert masksparsity.select(target, OPTIONS) == {
        g.name: index.tolist() for g, index in zip(target.groups, removed, strict=True)
    }
    return net, list(target.groups), removed


def gap(net: nn.Module, groups: Sequence[ChannelGroup], removed: Sequence[Tensor]) -> float:
    """The largest change of a logit by the cut, unchecked, over the largest logit; infinite where nothing fits."""
    before, net = logits(net), copy.deepcopy(net)
    cut(net, groups, removed)
    try:
        return float((logits(net) - before).abs().max() / before.abs().max())
    except RuntimeError:
        return float("inf")


def test_dead_channels_go_without_loss() -> None:
    net, groups, removed = dead()
    assert gap(net, groups, removed) < 1e-5
    before = logits(net)
    remove_channels(net, groups, removed, run, random_images(1))
    torch.testing.assert_close(logits(net), before, rtol=1e-5, atol=1e-5)


def test_a_shift_that_is_left_is_a_loss() -> None:
    net, groups, removed = dead(shift=0.5)
    assert gap(net, groups, removed) > 1e-2


@pytest.mark.parametrize("role", ["producer", "norm", "consumer"])
def test_one_permuted_index_set_in_a_residual_stage_is_a_loss(role: str) -> None:
    net, groups, removed = dead()
    stage = next(number for number, group in enumerate(groups) if group.coupled)
    members = groups[stage].members
    tried = [number for number, member in enumerate(members) if member.role == role]
    assert len(tried) >= 3
    for number in tried:
        wrong = dataclasses.replace(members[number], index=members[number].index.roll(1, 0))
        others = [*members[:number], wrong, *members[number + 1 :]]
        mistaken = [*groups]
        mistaken[stage] = dataclasses.replace(groups[stage], members=tuple(others))
        assert gap(net, mistaken, removed) > 1e-3, members[number].layer


def test_a_budget_that_no_mask_meets_is_refused_before_anything_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compress, "finetune", lambda *args, **more: pytest.fail("trained"))
    data = [(random_images(4), torch.zeros(4, dtype=torch.int64))]
    with pytest.raises(UserError, match="the floor is"):
        hybridprune.prune(random_net(8).backbone, data, target_flops=0.001, method="masksparsity")


@pytest.mark.full
def test_one_call_prunes_a_module_of_ones_own() -> None:
    net = random_net(14).backbone
    draw = torch.Generator().manual_seed(0)
    data = [(torch.rand(8, 3, 8, 8, generator=draw), torch.randint(5, (8,), generator=draw)) for _ in range(3)]
    pruned = hybridprune.prune(
        net,
        data,
        target_flops=0.5,
        method="masksparsity",
        cut=CutOptions(use_out_dependencies=True),
        sparsity=SparsityOptions(sparse_epochs=1),
    )
    assert 0.45 * pruned.spec.dense_macs < pruned.spec.macs <= 0.5 * pruned.spec.dense_macs
    assert count_module(pruned.module, data[0][0][:1]) == (pruned.spec.macs, pruned.spec.params)
