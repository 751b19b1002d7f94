"""Surgery on real networks: the plan's cost is the network's, and what is kept in full stays the same function."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from hybridprune.measure.cost import count
from hybridprune.models.factored import FactoredConv2d, FactorEdit
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.models.spec import NetworkSpec
from hybridprune.pruning.apply import apply_plan
from hybridprune.pruning.decompose import METHODS
from hybridprune.pruning.forms import DENSE, Ranks
from hybridprune.pruning.layers import PrunableLayer, prunable_layers
from hybridprune.pruning.plan import Cut, LayerPlan
from tests.cases import random_decisions, random_images, random_net
from tests.pruning.cases import SIZE, cut_of, random_decompositions

DEPTH, WIDTH, CLASSES = 8, 8, 5


def network() -> GatedNetwork:
    return random_net(DEPTH, WIDTH, CLASSES)


def outputs(net: GatedNetwork) -> Tensor:
    images = random_images(12, SIZE)
    return net(images, random_decisions(12, net.num_gates)).logits.detach()


def assert_same(found: Tensor, expected: Tensor) -> None:
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5


def plan_of(layers: Sequence[PrunableLayer], changes: dict[str, Ranks]) -> list[LayerPlan]:
    return [LayerPlan(layer.name, changes.get(layer.name, layer.form)) for layer in layers]


def prune(
    net: GatedNetwork, ratio: float, method: str = "fisher-tucker", seed: int = 0
) -> tuple[tuple[FactorEdit, ...], Cut, list[LayerPlan]]:
    layers = prunable_layers(net, SIZE)
    decompositions = random_decompositions(layers, method, seed=seed)
    scores = {name: (d.in_scores, d.out_scores) for name, d in decompositions.items()}
    cut = cut_of(net, layers, scores, normalize=True)
    plan = cut.at_ratio(ratio)
    return apply_plan(net, layers, decompositions, plan), cut, plan


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.6, 1.0])
def test_the_networks_cost_is_the_plans(method: str, ratio: float) -> None:
    net = network()
    for seed in range(2):  # the second time on factored layers
        _, cut, plan = prune(net, ratio, method, seed)
        cost = count(net, SIZE)
        assert (cost.backbone_macs, cost.backbone_params) == cut.cost(plan)


def test_edits_rebuild_the_architecture() -> None:
    net = network()
    prune(net, 0.2)
    edits, _, plan = prune(net, 0.2, seed=1)
    assert {edit.layer for edit in edits} == {p.name for p in plan if p.ranks != DENSE} != set()
    spec = NetworkSpec("resnet", DEPTH, WIDTH, CLASSES, edits)
    again = NetworkSpec.from_json(json.loads(json.dumps(spec.to_json()))).build().eval()
    again.load_state_dict(net.state_dict(), strict=True)
    assert torch.equal(outputs(again), outputs(net))


def test_layers_that_keep_their_form_are_left_alone() -> None:
    net = network()
    before = {layer.name: (layer.conv, layer.conv.weight.clone()) for layer in prunable_layers(net, SIZE)}
    _, _, plan = prune(net, 0.15)
    untouched = [planned.name for planned in plan if planned.ranks == DENSE]
    assert 0 < len(untouched) < len(plan)
    for name in untouched:
        conv, weight = before[name]
        assert net.get_submodule(name) is conv and torch.equal(conv.weight, weight)


@pytest.mark.parametrize("method", METHODS)
def test_ratio_zero_changes_nothing(method: str) -> None:
    net = network()
    expected = copy.deepcopy(net.state_dict())
    edits, _, _ = prune(net, 0.0, method)
    assert edits == ()
    torch.testing.assert_close(net.state_dict(), expected, rtol=0, atol=0)


def full_ranks(layer: PrunableLayer, form: str) -> Ranks:
    directions = layer.directions
    return {
        "two-sided": directions,
        "input-sided": Ranks(directions.rank_in, None),
        "output-sided": Ranks(None, directions.rank_out),
    }[form]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("form", ["two-sided", "input-sided", "output-sided"])
def test_layers_of_full_rank_are_the_same_function(form: str, method: str) -> None:
    net = network()
    net.backbone.blocks[1].conv1 = nn.Conv2d(8, 16, 3, 2, 1, bias=True)  # type: ignore[union-attr]
    expected = outputs(net)
    layers = prunable_layers(net, SIZE)
    plan = plan_of(layers, {layer.name: full_ranks(layer, form) for layer in layers})
    apply_plan(net, layers, random_decompositions(layers, method), plan)
    assert all(isinstance(net.get_submodule(layer.name), FactoredConv2d) for layer in layers)
    assert_same(outputs(net), expected)


def test_a_basis_in_another_order_is_another_function() -> None:
    """So that the test above proves something."""
    for field in ("in_basis", "out_basis", "core"):
        net = network()
        expected = outputs(net)
        layers = prunable_layers(net, SIZE)
        plan = plan_of(layers, {layers[3].name: layers[3].directions})
        decompositions = random_decompositions(layers)
        right = decompositions[layers[3].name]
        permuted = getattr(right, field).flip(1)
        decompositions[layers[3].name] = dataclasses.replace(right, **{field: permuted})
        apply_plan(net, layers, decompositions, plan)
        assert (outputs(net) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("form", ["dense", "two-sided", "input-sided", "output-sided"])
@pytest.mark.parametrize("first", ["two-sided", "input-sided", "output-sided"])
def test_factored_layers_can_change_their_form_without_loss(first: str, form: str, method: str) -> None:
    """Rotations of two cuts are merged, or absorbed."""
    net = network()
    net.backbone.blocks[0].conv2 = nn.Conv2d(8, 8, 3, 1, 1, bias=True)  # type: ignore[union-attr]
    for layer in prunable_layers(net, SIZE):  # weights that really are of low rank, so that cutting is exact
        low = layer.conv.weight.data
        low[-1] = 0.5 * low[0]
        low[:, -1] = 0.3 * low[:, 0]
    expected = outputs(net)
    layers = prunable_layers(net, SIZE)
    less = {}
    for layer in layers:
        full = full_ranks(layer, first)
        less[layer.name] = Ranks(*(None if rank is None else rank - 1 for rank in full))
    decompositions = random_decompositions(layers, "fisher-tucker", damping=1e-12)
    apply_plan(net, layers, decompositions, plan_of(layers, less))
    assert_same(outputs(net), expected)

    layers = prunable_layers(net, SIZE)
    assert [layer.form for layer in layers] == list(less.values())
    plan = plan_of(layers, {x.name: DENSE if form == "dense" else full_ranks(x, form) for x in layers})
    edits = apply_plan(net, layers, random_decompositions(layers, method, seed=500), plan)
    assert len(edits) == (0 if form == "dense" else len(layers))
    assert_same(outputs(net), expected)


def test_a_second_cut_merges_its_rotations() -> None:
    """A layer of multilinear rank 5 is cut to 7 and then to 5 directions, both times without loss."""
    net = network()
    name = "backbone.blocks.0.conv1"
    conv = net.get_submodule(name)
    assert isinstance(conv, nn.Conv2d)
    left, right = torch.randn(2, 8, 5)
    core = torch.randn(5, 5, 3, 3)
    conv.weight.data = torch.einsum("or,rskl,is->oikl", left, core, right)
    expected = outputs(net)
    for seed, rank in enumerate((7, 5)):
        layers = prunable_layers(net, SIZE)
        decompositions = random_decompositions(layers, "fisher-tucker", damping=1e-12, seed=seed)
        apply_plan(net, layers, decompositions, plan_of(layers, {name: Ranks(rank, rank)}))
        assert_same(outputs(net), expected)
        layer = next(x for x in prunable_layers(net, SIZE) if x.name == name)
        assert layer.form == Ranks(rank, rank)
        assert layer.rotate_in is not None and layer.rotate_out is not None
        identity = torch.eye(rank)
        torch.testing.assert_close(layer.rotate_in @ layer.rotate_in.T, identity, rtol=0, atol=1e-5)
        torch.testing.assert_close(layer.rotate_out.T @ layer.rotate_out, identity, rtol=0, atol=1e-5)


def test_memory_format_is_kept() -> None:
    net = network().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    prune(net, 0.6)
    factored = [module for module in net.modules() if isinstance(module, FactoredConv2d)]
    assert factored
    assert all(module.core.weight.is_contiguous(memory_format=torch.channels_last) for module in factored)
