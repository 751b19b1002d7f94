"""Effective sparsity is reached, by as small a cut as there is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

import hybridprune
from hybridprune.config import CutOptions, PruneConfig, SparsityOptions
from hybridprune.errors import UserError
from hybridprune.measure.effective import count_weights, live_weights
from hybridprune.pruning.budget import greedy
from hybridprune.pruning.budget.space import Cost, Space, UnitSet
from hybridprune.pruning.effective_target import EffectiveTarget, allocate_effective
from hybridprune.stages.cut_schedule import Cutting
from tests.networks_and_images import random_images

BATCHES = [(random_images(8), torch.randint(5, (8,)))]
UNITS = 37


@dataclass
class FakePlan:
    """A plan whose network has the square of its units as weights."""

    network: Any = field(default_factory=lambda: SimpleNamespace(model=nn.Linear(UNITS, UNITS)))
    space: Space = field(default_factory=lambda: Space([UnitSet("u", torch.linspace(1, 0, UNITS), 5)], [], Cost(0, 0)))

    def allocate(self, ratio: float, budget: None) -> list[int]:
        return greedy.cut_at_ratio(self.space, ratio, greedy.importance)

    def sketch(self, kept: Sequence[int]) -> nn.Module:
        return nn.Linear(kept[0], kept[0])


@pytest.mark.parametrize("most", [25, 26, 500, 36**2, UNITS**2 - 1, UNITS**2])
def test_no_smaller_cut_reaches_it(most: int) -> None:
    target = EffectiveTarget(0.5, UNITS**2, most, count_weights)
    expected = max(n for n in range(5, UNITS + 1) if n * n <= most)
    assert allocate_effective(cast(Any, FakePlan()), target) == [expected]


def test_what_the_limit_does_not_reach_is_refused_with_the_most_that_it_does() -> None:
    with pytest.raises(UserError, match=r"--target_effective 0.99: .*the most is 0.9817 of"):
        allocate_effective(cast(Any, FakePlan()), EffectiveTarget(0.99, UNITS**2, 24.9, count_weights))


def dying() -> nn.Sequential:
    """A third of the second layer's channels are dead already."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Conv2d(12, 18, 3, padding=1, bias=False), nn.BatchNorm2d(18), nn.ReLU(),
        nn.Conv2d(18, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5),
    )  # fmt: skip
    for number, module in enumerate(net):
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            module.weight.data[: 6 if number == 4 else 0] = 0
    return net


@pytest.mark.parametrize(
    ("method", "allocation"), [("l1", "importance"), ("random", "igq"), ("bn-scale", "peel"), ("fisher-tucker", "igq")]
)
def test_any_score_and_allocation_reaches_it(method: str, allocation: str) -> None:
    net = dying()
    dense, images = count_weights(net), BATCHES[0][0][:1]
    cut = CutOptions(target_effective=0.6, allocation=allocation, refit_images=0)
    small = hybridprune.prune(net, BATCHES, method=method, cut=cut).module
    reached = hybridprune.effective_sparsity(small, images, dense)
    # The last unit that goes is no more than a twelfth of the two layers that it is a part of.
    assert 0.6 <= reached < 0.7
    if allocation != "peel":
        return
    # Dead channels went first: what is left of the plain count is what lives.
    assert sum(live_weights(small, images).values()) == count_weights(small)


def test_what_training_brings_back_is_told() -> None:
    """Silenced channels that the cut has left in place, behind a shift that lets gradients through."""
    net = dying()
    net.get_parameter("4.bias").data[:6] = 0.1
    cut = CutOptions(target_effective=0.35)
    with pytest.warns(UserWarning, match=r"effective sparsity is 0\.[0-2].*, below the target of 0\.35: weights that"):
        hybridprune.prune(net, BATCHES, method="l1", cut=cut, fine_tune=1.0)


@pytest.mark.full
def test_methods_that_select_after_a_training_reach_it_and_others_are_refused_before() -> None:
    options = SparsityOptions(sparse_epochs=0)
    net, images = dying(), BATCHES[0][0][:1]
    cut = CutOptions(target_effective=0.6)
    small = hybridprune.prune(net, BATCHES, method="greg-1", cut=cut, sparsity=options).module
    assert 0.6 <= hybridprune.effective_sparsity(small, images, count_weights(net)) < 0.7
    with pytest.raises(UserError, match=r"cut.target_effective 0.6: method masksparsity says itself"):
        hybridprune.prune(net, BATCHES, method="masksparsity", cut=cut, sparsity=options)
    high = CutOptions(target_effective=0.999, prune_ratio_limit=0.5)
    with pytest.raises(UserError, match=r"cut.target_effective 0.999: above what cut.prune_ratio_limit"):
        hybridprune.prune(net, BATCHES, method="slimming", cut=high, sparsity=SparsityOptions(sparse_epochs=50))


def test_one_target_is_given_and_networks_of_one_tensor() -> None:
    with pytest.raises(UserError, match=r"target_effective 0.5: is met by itself, and target_flops is 0.5; give one"):
        CutOptions(target_effective=0.5, target_flops=0.5)
    with pytest.raises(UserError, match=r"cut.target_effective 0.5: paths are looked for"):
        hybridprune.prune(
            dying(), BATCHES, method="l1", cut=CutOptions(target_effective=0.5), forward=lambda m, b: m(b[0])
        )
    with pytest.raises(UserError, match=r"prune_ratio 0.5: is not read where there is a budget, target_effective"):
        hybridprune.prune(dying(), BATCHES, cut=CutOptions(target_effective=0.5, prune_ratio=0.5))


def test_iterations_go_on_a_geometric_path_of_what_lives() -> None:
    config = PruneConfig(cut=CutOptions(target_effective=0.84, prune_ratio_limit=0.99))
    target = EffectiveTarget(0.84, 1000, 160, count_weights)
    cutting = Cutting(config, cast(Any, None), {}, Cost(0, 0), {}, wanted=target, living=1000)
    last = cutting.effective(0)
    assert last is not None and last.most == pytest.approx(160)
    two = replace(cutting, config=replace(config, stage=replace(config.stage, max_iter=2)))
    assert [round(aim.most) for cut in (0, 1) if (aim := two.effective(cut))] == [400, 160]
    assert replace(cutting, wanted=None).effective(0) is None
