"""Branches as a space: shares of energy against a search for beta, and what cut networks cost and compute."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hybridprune.config import CurvatureOptions, CutOptions
from hybridprune.errors import UserError
from hybridprune.measure.cost import count_module
from hybridprune.models.branched import BranchedConv2d
from hybridprune.pruning.branches.assignment import attach_logits
from hybridprune.pruning.branches.energy import cumulative_shares
from hybridprune.pruning.budget.space import Budget, Cost
from hybridprune.pruning.make_plan import make_plan
from hybridprune.pruning.plan_branches import BranchPlan
from tests.networks_and_images import random_images, random_net
from tests.pruning.channels.networks import NETS, logits, run

SIZE = 8


@dataclass
class Network:
    """A network of the tests as one that can be pruned."""

    model: nn.Module
    exclude: tuple[str, ...] = ("gate.*",)
    seed: int = 0
    shared: bool = False
    measurements: None = None
    likelihood: Any = None

    @property
    def example(self) -> Tensor:
        return random_images(1, SIZE).to(next(self.model.parameters()))

    @property
    def channels(self) -> dict[str, int]:
        return {}

    @property
    def cost(self) -> Cost:
        return self.measure(self.model)

    def logits(self, images: Any) -> Any:
        return self.model(images)

    def run(self, model: nn.Module, images: Any) -> object:
        return run(model, images)

    def sample(self, images: int, purpose: str) -> Any:
        raise AssertionError(purpose)

    def judge(self, model: nn.Module) -> float:
        raise AssertionError(model)

    def measure(self, model: nn.Module) -> Cost:
        return Cost(*count_module(getattr(model, "backbone", model), self.example))

    def counts(self, name: str) -> bool:
        return not name.startswith("gate.")


def planned(model: nn.Module, groups: int, **options: Any) -> BranchPlan:
    """The plan of a network whose filters are in random groups."""
    draw = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.groups == 1:
            given = attach_logits(module, groups, len(module.weight))
            given.copy_(torch.rand(given.shape, generator=draw))
    plan = make_plan(Network(model), CutOptions(method="dsp", **options), CurvatureOptions())
    assert isinstance(plan, BranchPlan)
    return plan


def masked(plan: BranchPlan, model: nn.Module, kept: list[int]) -> nn.Module:
    """A copy that has a 0 for every weight that is not read."""
    model = copy.deepcopy(model)
    for layer in plan.layers:
        weight = model.get_submodule(layer.name).get_parameter("weight")
        weight.data *= plan.branches.reads(layer.name, kept)[:, :, None, None]
    return model


@pytest.mark.parametrize(("name", "groups"), [("resnet", 3), ("vgg", 2), ("branches", 4)])
def test_what_is_cut_computes_what_the_masked_network_does_and_costs_what_was_said(name: str, groups: int) -> None:
    model = (random_net(8).backbone if name == "resnet" else NETS[name]()).double().eval()
    plan = planned(model, groups)
    before = logits(model, SIZE)
    draw = torch.Generator().manual_seed(1)
    kept = [int(torch.randint(s.least, len(s.scores) + 1, (), generator=draw)) for s in plan.space.sets]
    if name == "vgg":  # a channel that no group reads goes
        kept = [min(k, max(1, len(s.scores) // 3)) for k, s in zip(kept, plan.space.sets, strict=True)]
    expected = logits(masked(plan, model, kept), SIZE)
    sketch = plan.sketch(kept)
    plan.apply(kept)  # raises BrokenPromise if the cost is not exactly the plan's
    found = logits(model, SIZE)
    assert (found - expected).abs().max() < 1e-10 < 1e-3 < (before - expected).abs().max()
    assert torch.equal(logits(sketch, SIZE), found)
    layers = [module for module in model.modules() if isinstance(module, BranchedConv2d)]
    assert any(len(layer.sizes) > 1 for layer in layers)
    assert not any("logits" in key for key in model.state_dict())
    if name == "vgg":
        assert any(module.out_channels < 6 for module in model.modules() if isinstance(module, nn.Conv2d))


def test_one_group_prunes_input_channels_but_of_the_stem_and_projections() -> None:
    """All filters of a layer read the same: those inputs whose weights have most energy."""
    plan = planned(random_net(8), 1)
    assert plan.left_alone["backbone.conv"] == "it reads the images"
    assert plan.left_alone["backbone.blocks.1.projection.0"] == "it is the projection of a shortcut"
    assert plan.left_alone["backbone.classifier"] == "only the filters of convolutions are grouped"
    assert {x.name for x in plan.layers} == {f"backbone.blocks.{b}.conv{c}" for b in range(3) for c in (1, 2)}
    assert [x.loses_filters for x in plan.layers] == [False, True] * 3
    energies = {x.name: x.conv.weight.detach().double().square().sum((0, 2, 3)) for x in plan.layers}
    kept = plan.allocate(0.4, None)
    for layer in plan.layers:
        reads = plan.branches.reads(layer.name, kept)
        row = reads[plan.branches.alive(layer.name, kept)][0]
        assert bool((reads == (row & plan.branches.alive(layer.name, kept)[:, None])).all())
        if layer.grouped:
            best = energies[layer.name].topk(int(row.sum())).indices
            assert set(best.tolist()) == set(row.nonzero().flatten().tolist())


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=6), min_size=1, max_size=3), st.data())
def test_one_ranking_is_the_search_for_beta(layers: list[list[int]], data: st.DataObject) -> None:
    """Units go while the share of all that are no larger is below beta: for each beta a beginning of the ranking."""
    shares = [cumulative_shares(torch.tensor(layer, dtype=torch.float64)) for layer in layers]
    beta = data.draw(st.floats(0.0, 1.0))
    for energies, (scores, order) in zip(layers, shares, strict=True):
        total, ascending = sum(energies), sorted(energies)
        below = sum(sum(ascending[: n + 1]) < beta * total - 1e-9 for n in range(len(ascending)))
        if total and all(abs(sum(ascending[: n + 1]) - beta * total) > 1e-9 for n in range(len(ascending))):
            assert int((scores < beta).sum()) == below
        assert [energies[i] for i in order.tolist()] == ascending[::-1]
        assert scores[0] == 1.0 and bool((scores.diff() <= 0).all())


def test_a_budget_is_met_where_every_share_is_large() -> None:
    """By a threshold below the smallest share nothing would go, and in the authors' code everything."""
    model = NETS["vgg"]()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.fill_(0.1)
    plan = planned(model, 1)
    assert min(float(s.scores[-1]) for s in plan.space.sets) > 0.15
    network = plan.network
    kept = plan.allocate(0.0, Budget(macs=0.9 * network.cost.macs))
    assert 0.8 * network.cost.macs < plan.space.cost(kept).macs <= 0.9 * network.cost.macs
    assert plan.allocate(0.0, None) == plan.space.everything()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"normalize": True}, "--normalize: the scores of --method dsp are shares"),
        ({"allocation": "peel"}, "--allocation peel"),
        ({"allocation": "rate_distortion"}, "--allocation rate_distortion"),
        ({"exclude": ("*",)}, "no convolution is left"),
    ],
)
def test_what_has_no_meaning_is_refused(options: dict[str, Any], words: str) -> None:
    network = Network(NETS["vgg"](), exclude=options.get("exclude", ()))
    with pytest.raises(UserError, match=words):
        make_plan(network, CutOptions(method="dsp", **options), CurvatureOptions()).allocate(0.5, None)
