"""bcnet as a method: on a module of the user's own, what it selects by, and what it refuses."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import Tensor, nn

import hybridprune
from hybridprune.config import CutOptions, SparsityOptions
from hybridprune.engine.initialise import initialise
from hybridprune.errors import UserError
from hybridprune.measure.cost import count_module
from hybridprune.pruning.budget.space import Budget
from hybridprune.pruning.make_plan import sparsity_of
from hybridprune.pruning.methods.bcnet.masks import RECORD, WidthMask
from hybridprune.pruning.methods.bcnet.method import prepare, select
from hybridprune.pruning.sparse_training.masked_reading import fold_masks
from hybridprune.pruning.sparse_training.protocol import Target
from tests.networks_and_images import random_images
from tests.pruning.methods.nuspm.test_method import Unnormed, images, target_of

SIZE = 8
OPTIONS = SparsityOptions(sparse_epochs=1, bcnet_bins=4, bcnet_losses=3, bcnet_population=8, bcnet_generations=6)


def kept_by(target: Target) -> list[int]:
    """The channels of each group that are selected, of a record that says nothing."""
    prepare(target, OPTIONS)
    fold_masks(target.model)
    for group in target.groups:
        target.model.get_submodule(group.name).get_buffer(RECORD).fill_(1.0)
    removed = select(target, OPTIONS)
    assert removed is not None
    for group in target.groups:
        gone = removed[group.name]
        assert gone == list(range(group.channels - len(gone), group.channels))
    assert not any(RECORD in name for name in target.model.state_dict())
    return [group.channels - len(removed[group.name]) for group in target.groups]


def test_a_users_module_meets_the_budget_with_new_weights() -> None:
    model = Unnormed()
    pruned = hybridprune.prune(model, images(), method="bcnet", target_flops=0.5, lr=0.05, sparsity=OPTIONS)
    assert 0.44 <= pruned.spec.macs / pruned.spec.dense_macs <= 0.5
    assert count_module(pruned.module, random_images(1, SIZE)) == (pruned.spec.macs, pruned.spec.params)
    assert pruned.module.state_dict().keys() == model.state_dict().keys()
    fresh = copy.deepcopy(pruned.module)
    initialise(fresh, 0, "cut")
    assert all(torch.equal(v, pruned.module.state_dict()[k]) for k, v in fresh.state_dict().items())


def test_the_widths_that_the_judge_prefers_are_selected_by_both_of_their_sides() -> None:
    """A judge that wants many channels in one group: few of the others have to do."""
    seen: list[Tensor] = []

    def judge(model: nn.Module, wanted: int) -> float:
        masks = [module.kept for module in model.modules() if isinstance(module, WidthMask)]
        seen.append(masks[wanted].clone())
        return float(masks[wanted].mean())

    for wanted in (0, 1):
        target = target_of(Unnormed(), 0.4)
        kept = kept_by(dataclasses.replace(target, judge=lambda model, own=wanted: judge(model, own)))
        widest = [group.channels for group in target.groups]
        assert kept[wanted] == widest[wanted] and kept[1 - wanted] < widest[1 - wanted]
    left, right = seen[0::2], seen[1::2]
    assert all(torch.equal(a, b.flip(0)) for a, b in zip(left, right, strict=True))
    assert all(bool((a.diff() <= 0).all()) for a in left)


def test_without_a_training_nothing_is_selected() -> None:
    assert select(target_of(Unnormed(), 0.5), OPTIONS) is None


def test_the_cut_network_starts_anew_unless_something_else_is_said() -> None:
    own, kept = sparsity_of("bcnet"), CutOptions(cut_weights="inherit")
    assert own.cut_weights(CutOptions()) == "scratch" and own.cut_weights(kept) == "inherit"
    assert sparsity_of("nuspm").cut_weights(CutOptions()) == "inherit" == sparsity_of("l1").cut_weights(CutOptions())


@pytest.mark.parametrize(
    ("budget", "options", "words"),
    [
        (None, {}, "give --target_flops, and no other"),
        (Budget(params=1e3), {}, "give --target_flops, and no other"),
        (Budget(macs=1e6, params=1e3), {}, "give --target_flops, and no other"),
        (Budget(macs=1e6), {"sparse_epochs": 0}, "--sparse_epochs 0"),
        (Budget(macs=1e6), {"sparsity_weight": 0.1}, "--sparsity_weight 0.1"),
        (Budget(macs=1e4), {"bcnet_bins": 2}, "the floor is .*more --bcnet_bins"),
    ],
    ids=str,
)
def test_what_it_cannot_do_is_refused(budget: Budget | None, options: dict[str, float], words: str) -> None:
    net = Unnormed()
    target = dataclasses.replace(target_of(net, 1.0), budget=budget)
    with pytest.raises(UserError, match=words):
        prepare(target, dataclasses.replace(OPTIONS, **options))  # type: ignore[arg-type]
    assert not any(isinstance(module, WidthMask) for module in net.modules())
