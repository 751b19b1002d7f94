"""Surgery on real networks: the cost is that of the plan, and what is kept in full stays the same function."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from hybridprune.models.edits import FactorEdit, factor_edits
from hybridprune.models.factored import DENSE, FactoredConv2d, FactoredLayer, Ranks
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.models.spec import NetworkSpec
from hybridprune.pruning.budget.greedy import cut_at_ratio, importance
from hybridprune.pruning.budget.space import Budget
from hybridprune.pruning.directions.layers import PrunableLayer, prunable_layers
from hybridprune.pruning.directions.rate_distortion import cut_at_budget
from hybridprune.pruning.directions.surgery import apply_ranks
from tests.networks_and_images import random_decisions, random_images, random_net
from tests.pruning.random_curvature import (
    DIRECTION_METHODS,
    SIZE,
    cost_of,
    forms,
    layers_of,
    random_decompositions,
    replaced,
    space_of,
)

DEPTH, WIDTH, CLASSES = 8, 8, 5
FORMS = ["dense", "two-sided", "input-sided", "output-sided"]
DTYPES = [(torch.float32, 1e-4), (torch.float64, 1e-10)]


def network() -> GatedNetwork:
    return random_net(DEPTH, WIDTH, CLASSES)


def outputs(net: GatedNetwork) -> Tensor:
    images = random_images(12, SIZE).to(next(net.parameters()).dtype)
    return net(images, random_decisions(12, net.num_gates)).logits.detach()


def assert_same(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    assert float((found - expected).abs().max() / expected.abs().max()) < tolerance


def plan_of(layers: Sequence[PrunableLayer], changes: dict[str, Ranks]) -> dict[str, Ranks]:
    return {layer.name: changes.get(layer.name, layer.form) for layer in layers}


def prune(
    net: GatedNetwork, ratio: float, method: str = "fisher-tucker", seed: int = 0, sweeps: int = 0
) -> dict[str, Ranks]:
    """Cut the network by random curvature, and check that it costs what the space says."""
    layers = layers_of(net)
    decompositions = random_decompositions(layers, method, seed=seed)
    space = space_of(layers, decompositions, cost_of(net), normalize=True)
    kept = cut_at_ratio(space, ratio, importance)
    plan = forms(space, kept)
    apply_ranks(net, layers, decompositions, plan, sweeps)
    assert cost_of(net) == space.cost(kept)
    return plan


@pytest.mark.parametrize("sweeps", [0, 2])
@pytest.mark.parametrize("method", DIRECTION_METHODS)
@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.6, 1.0])
def test_the_networks_cost_is_the_plans(method: str, ratio: float, sweeps: int) -> None:
    net = network()
    for seed in range(2):  # the second time on factored layers
        prune(net, ratio, method, seed, sweeps)
        assert torch.isfinite(outputs(net)).all()


def test_the_networks_cost_is_that_of_rates_and_distortions() -> None:
    net = network()
    for seed, share in enumerate((0.7, 0.6)):
        layers, whole = layers_of(net), cost_of(net)
        decompositions = random_decompositions(layers, seed=seed, offsets=True)
        space = space_of(layers, decompositions, whole)
        budget = Budget(macs=share * whole.macs)
        kept = cut_at_budget(space, budget)
        apply_ranks(net, layers, decompositions, forms(space, kept), sweeps=1)
        assert cost_of(net) == space.cost(kept) and budget.allows(cost_of(net))


def test_edits_rebuild_the_architecture() -> None:
    net = network()
    prune(net, 0.4)
    plan = prune(net, 0.2, seed=1)
    edits = factor_edits(net)
    assert {edit.layer for edit in edits} == {name for name, ranks in plan.items() if ranks != DENSE} != set()
    assert all(plan[edit.layer] == edit.ranks for edit in edits)
    spec = NetworkSpec("resnet", DEPTH, WIDTH, CLASSES, edits)
    again = NetworkSpec.from_json(json.loads(json.dumps(spec.to_json()))).build().eval()
    again.load_state_dict(net.state_dict(), strict=True)
    assert torch.equal(outputs(again), outputs(net))


def test_layers_that_keep_their_form_are_left_alone() -> None:
    net = network()
    before = {layer.name: (layer.leaf, layer.weight.clone()) for layer in layers_of(net)}
    plan = prune(net, 0.35)
    untouched = [name for name, ranks in plan.items() if ranks == DENSE]
    assert 0 < len(untouched) < len(plan)
    for name in untouched:
        leaf, weight = before[name]
        assert net.get_submodule(name) is leaf
        assert torch.equal(leaf.weight, weight.view_as(leaf.weight))


@pytest.mark.parametrize("method", DIRECTION_METHODS)
def test_ratio_zero_changes_nothing(method: str) -> None:
    net = network()
    expected = copy.deepcopy(net.state_dict())
    prune(net, 0.0, method)
    assert factor_edits(net) == ()
    torch.testing.assert_close(net.state_dict(), expected, rtol=0, atol=0)


def ranks_of(layer: PrunableLayer, form: str) -> Ranks:
    """Full ranks in some form."""
    inputs, outputs = layer.directions
    return {
        "dense": DENSE,
        "two-sided": Ranks(inputs, outputs),
        "input-sided": Ranks(inputs, None),
        "output-sided": Ranks(None, outputs),
    }[form]


def fewer(ranks: Ranks, less: int) -> Ranks:
    """The same form with so many directions less on each side that has a rotation."""
    rank_in, rank_out = (None if rank is None else max(rank - less, 1) for rank in ranks[:2])
    return Ranks(rank_in, rank_out)


LAYERS = [
    (nn.Conv2d(5, 7, 3, 1, 1, bias=False), (5, 9, 8)),
    (nn.Conv2d(5, 7, 3, 2, 1), (5, 9, 8)),
    (nn.Conv2d(5, 7, (3, 1), (1, 2), (0, 1), dilation=(2, 1)), (5, 9, 8)),
    (nn.Conv2d(7, 5, 3, padding="same"), (7, 9, 8)),
    (nn.Conv2d(7, 5, 1, bias=False), (7, 9, 8)),
    (nn.Conv2d(7, 5, 1, 2), (7, 9, 8)),
    (nn.Conv2d(7, 5, 1, 2, 1), (7, 9, 8)),
    (nn.Linear(6, 4), (6,)),
    (nn.Linear(6, 4), (3, 6)),
    (nn.Linear(4, 6, bias=False), (4,)),
]


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("method", DIRECTION_METHODS)
@pytest.mark.parametrize(("layer", "shape"), LAYERS)
def test_every_form_of_full_rank_is_the_dense_layer_and_stays_it_from_form_to_form(
    layer: nn.Module, shape: tuple[int, ...], method: str, dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(0)
    x = torch.randn(6, *shape, dtype=dtype)
    for first in FORMS[1:]:
        model = nn.Sequential(copy.deepcopy(layer).to(dtype))
        expected = model(x).detach()
        for seed, form in enumerate((first, *FORMS)):
            layers = prunable_layers(model, lambda m=model: m(x[:1]))
            ranks = {"0": ranks_of(layers[0], form)}
            apply_ranks(model, layers, random_decompositions(layers, method, seed=seed, offsets=seed % 2 == 0), ranks)
            assert isinstance(model[0], FactoredLayer) == (form != "dense")
            found = model(x).detach()
            assert found.dtype == dtype and found.shape == expected.shape
            assert_same(found, expected, tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("method", DIRECTION_METHODS)
@pytest.mark.parametrize("form", FORMS[1:])
def test_a_network_of_full_rank_is_the_same_function(
    form: str, method: str, dtype: torch.dtype, tolerance: float
) -> None:
    net = network().to(dtype)
    net.gate.float()  # it computes in fp32 whatever it gets
    net.backbone.blocks[1].conv1 = nn.Conv2d(8, 16, 3, 2, 1, bias=True, dtype=dtype)
    expected = outputs(net)
    for seed in range(2):
        layers = layers_of_type(net, dtype)
        plan = plan_of(layers, {layer.name: ranks_of(layer, form) for layer in layers})
        apply_ranks(net, layers, random_decompositions(layers, method, seed=seed, offsets=True), plan)
        assert all(isinstance(net.get_submodule(layer.name), FactoredLayer) for layer in layers)
        assert_same(outputs(net), expected, tolerance)


def layers_of_type(net: GatedNetwork, dtype: torch.dtype) -> list[PrunableLayer]:
    return prunable_layers(net, lambda: net.backbone(torch.zeros(1, 3, SIZE, SIZE, dtype=dtype)))


@pytest.mark.parametrize("field", ["in_basis", "out_basis", "in_scale", "out_scale", "core"])
def test_a_permuted_index_is_another_function(field: str) -> None:
    """So that the tests above prove something."""
    net = network()
    expected = outputs(net)
    layers = layers_of(net)
    plan = plan_of(layers, {layers[3].name: Ranks(*layers[3].directions)})
    decompositions = random_decompositions(layers)
    right = decompositions[layers[3].name]
    decompositions[layers[3].name] = replaced(right, **{field: getattr(right, field).flip(1)})
    apply_ranks(net, layers, decompositions, plan)
    assert (outputs(net) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("method", DIRECTION_METHODS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("first", FORMS[1:])
def test_layers_of_low_rank_change_their_form_without_loss(first: str, form: str, method: str) -> None:
    """Rotations of two cuts are merged, or absorbed."""
    net = network()
    net.backbone.blocks[0].conv2 = nn.Conv2d(8, 8, 3, 1, 1, bias=True)
    for layer in layers_of(net):  # weights that really are of low rank, so that cutting is exact
        low = layer.leaf.weight.data
        low[-1] = 0.5 * low[0]
        low[:, -1] = 0.3 * low[:, 0]
    expected = outputs(net)
    layers = layers_of(net)
    less = {}
    for layer in layers:
        less[layer.name] = fewer(ranks_of(layer, first), 1)
    decompositions = random_decompositions(layers, damping=1e-20)
    apply_ranks(net, layers, decompositions, less, sweeps=2)
    assert_same(outputs(net), expected)

    layers = layers_of(net)
    assert [layer.form for layer in layers] == list(less.values())
    plan = {layer.name: ranks_of(layer, form) for layer in layers}
    apply_ranks(net, layers, random_decompositions(layers, method, seed=500), plan)
    assert len(factor_edits(net)) == (0 if form == "dense" else len(layers))
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
        layers = layers_of(net)
        decompositions = random_decompositions(layers, damping=1e-20, seed=seed, offsets=True)
        apply_ranks(net, layers, decompositions, plan_of(layers, {name: Ranks(rank, rank)}))
        assert_same(outputs(net), expected)
        layer = next(x for x in layers_of(net) if x.name == name)
        assert layer.form == Ranks(rank, rank)
        assert layer.rotate_in is not None and layer.rotate_out is not None
        identity = torch.eye(rank)
        torch.testing.assert_close(layer.rotate_in @ layer.rotate_in.T, identity, rtol=0, atol=1e-5)
        torch.testing.assert_close(layer.rotate_out.T @ layer.rotate_out, identity, rtol=0, atol=1e-5)


@pytest.mark.parametrize("first", FORMS[1:])
@pytest.mark.parametrize("form", FORMS)
def test_a_cut_of_a_layer_is_the_truncated_weight(form: str, first: str) -> None:
    """What the network computes by is what the decomposition promised, also where it lost something."""
    net = nn.Sequential(nn.Conv2d(6, 5, 3, padding=1, dtype=torch.float64))
    x = torch.randn(2, 6, 7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    bias = net[0].get_parameter("bias").detach()
    weight = None
    for seed, now in enumerate((first, form)):
        layers = prunable_layers(net, lambda: net(x[:1]))
        (layer,) = layers
        decompositions = random_decompositions(layers, seed=seed)
        less = fewer(ranks_of(layer, now), 2)
        rank_in, rank_out = (
            full if rank is None else rank for rank, full in zip(less[:2], layer.directions, strict=True)
        )
        assert rank_in is not None and rank_out is not None
        core = decompositions["0"].truncate(rank_out, rank_in).dense()
        if layer.rotate_in is not None:
            core = torch.einsum("orkl,ri->oikl", core, layer.rotate_in)
        weight = core if layer.rotate_out is None else torch.einsum("or,rikl->oikl", layer.rotate_out, core)
        apply_ranks(net, layers, decompositions, {"0": less})
        expected = nn.functional.conv2d(x, weight, bias, padding=1)
        torch.testing.assert_close(net(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_memory_format_is_kept(form: str) -> None:
    net = network().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    prune(net, 0.6)
    factored = [module for module in net.modules() if isinstance(module, FactoredConv2d)]
    assert factored
    assert all(module.core.weight.is_contiguous(memory_format=torch.channels_last) for module in factored)
    layers = layers_of(net)
    apply_ranks(net, layers, random_decompositions(layers), {x.name: ranks_of(x, form) for x in layers})
    convs = [m for m in net.backbone.modules() if isinstance(m, nn.Conv2d)]
    assert all(conv.weight.is_contiguous(memory_format=torch.channels_last) for conv in convs)


def test_an_edit_is_what_the_layer_became() -> None:
    net = network()
    layers = layers_of(net)
    changes = {"backbone.conv": Ranks(None, 3), "backbone.classifier": Ranks(4, None)}
    apply_ranks(net, layers, random_decompositions(layers), plan_of(layers, changes))
    assert factor_edits(net) == (FactorEdit("backbone.conv", None, 3), FactorEdit("backbone.classifier", 4, None))
