"""nuspm on a module of the user's own, and what it asks of an optimiser."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import hybridprune
from hybridprune.config import SparsityOptions
from hybridprune.config.methods import METHODS
from hybridprune.errors import UserError
from hybridprune.measure.cost import count_module, module_macs
from hybridprune.pruning.budget.space import Budget, Cost
from hybridprune.pruning.channels import channel_space
from hybridprune.pruning.methods.nuspm import method as nuspm
from hybridprune.pruning.methods.nuspm.masks import attach_masks, attached_masks, mask_parameters
from hybridprune.pruning.sparse_training.masked_reading import fold_masks
from hybridprune.pruning.sparse_training.protocol import Target
from tests.networks_and_images import random_images
from tests.pruning.channels.networks import NETS, groups_of

SIZE = 8
OPTIONS = SparsityOptions(sparse_epochs=3)


class Unnormed(nn.Sequential):
    """Without a BatchNorm."""

    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(3, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 16, 3, padding=1), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)),
        )


def images(count: int = 8) -> list[tuple[Tensor, Tensor]]:
    return [(random_images(6, SIZE, seed=n), torch.arange(6) % 5) for n in range(count)]


def target_of(net: nn.Module, share: float) -> Target:
    groups, macs = groups_of(net), module_macs(net, SIZE)
    whole = Cost(sum(macs.values()), sum(p.numel() for p in net.parameters()))
    space = channel_space(net, groups, [torch.zeros(g.channels) for g in groups], macs, whole, limit=0.9).space
    return Target(net, groups, space, Budget(macs=share * whole.macs), {})


@pytest.mark.parametrize("build", [Unnormed, NETS["branches"]])
def test_a_users_module_meets_the_budget(build: Callable[[], nn.Module]) -> None:
    model = build()
    before = [p.clone() for p in model.parameters()]
    pruned = hybridprune.prune(model, images(), method="nuspm", target_flops=0.5, lr=0.05, sparsity=OPTIONS)
    # One channel is 5 % of the MACs here.
    assert 0.95 * 0.5 <= pruned.spec.macs / pruned.spec.dense_macs <= 0.5
    assert count_module(pruned.module, random_images(1, SIZE)) == (pruned.spec.macs, pruned.spec.params)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert not any("mask" in name or "parametrizations" in name for name in pruned.module.state_dict())


def test_what_is_pruned_computes_what_the_masked_network_did(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the end of its training, and without BatchNorm, whose statistics are estimated anew after the cut."""
    x, seen = random_images(4, SIZE), []

    def conclude(net: nn.Module) -> None:
        with torch.no_grad():
            seen.append((net(x), [int(mask.kept.sum()) for mask in attached_masks(net).values()]))
        fold_masks(net)

    assert nuspm.METHOD.sparsity is not None
    method = dataclasses.replace(nuspm.METHOD, sparsity=dataclasses.replace(nuspm.METHOD.sparsity, conclude=conclude))
    monkeypatch.setitem(METHODS.added, "nuspm", method)
    pruned = hybridprune.prune(Unnormed(), images(), method="nuspm", target_flops=0.5, lr=0.05, sparsity=OPTIONS)
    ((expected, kept),) = seen
    first, second = pruned.module.get_submodule("0"), pruned.module.get_submodule("2")
    assert isinstance(first, nn.Conv2d) and isinstance(second, nn.Conv2d)
    assert [first.out_channels, second.out_channels] == kept != [24, 16]
    with torch.no_grad():
        assert torch.allclose(pruned.module(x), expected, atol=1e-5)


def test_masks_do_not_decay_and_learn_at_the_rate_of_the_weights() -> None:
    net = NETS["resnet"]()
    drive = nuspm.prepare(target_of(net, 0.5), OPTIONS)
    assert set(drive.undecayed) == set(mask_parameters(net)) and len(drive.undecayed) == 9
    assert not drive.lr_factors
    assert drive.metrics() == {"masks_of_budget": pytest.approx(2.0), "masks_moved": 0}


def test_the_selection_is_what_is_masked_unless_that_misses_the_budget() -> None:
    net = NETS["resnet"]()
    target = target_of(net, 0.5)
    assert nuspm.select(target, OPTIONS) is None  # nothing has been trained
    masks = attach_masks(net, target.groups)
    with torch.no_grad():
        for number, mask in enumerate(masks.values()):
            mask.scalars[1::2] = 0.1
            if number == 3:
                mask.scalars.fill_(0.2)
    fold_masks(net)
    selected = nuspm.select(target, OPTIONS)
    assert selected is not None
    for number, group in enumerate(target.groups):
        odd = list(range(1, group.channels, 2))
        assert selected[group.name] == (list(range(1, group.channels)) if number == 3 else odd)


@pytest.mark.parametrize(
    ("share", "params", "options", "words"),
    [
        (None, None, OPTIONS, "give --target_flops"),
        (0.5, 1000.0, OPTIONS, "give --target_flops, and no other"),
        (0.001, None, OPTIONS, "the floor is"),
        (0.5, None, SparsityOptions(sparse_epochs=0), "--sparse_epochs 0"),
        (0.5, None, SparsityOptions(sparsity_weight=0.1), "--sparsity_weight 0.1"),
    ],
    ids=lambda value: str(value)[:12],
)
def test_what_it_cannot_do_is_refused(
    share: float | None, params: float | None, options: SparsityOptions, words: str
) -> None:
    net = NETS["vgg"]()
    target = target_of(net, share or 1.0)
    macs = None if target.budget is None or share is None else target.budget.macs
    budget = None if share is None and params is None else Budget(macs, params)
    with pytest.raises(UserError, match=words):
        nuspm.prepare(dataclasses.replace(target, budget=budget), options)
    assert not attached_masks(net)
