"""Separable layers: what they are expected to lose, what they cost, and that plans are met by the networks."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from hybridprune.measure.cost import count_module
from hybridprune.models.factored import DENSE, FactoredConv2d, Ranks, form
from hybridprune.pruning.budget.space import Budget, Cost, Space
from hybridprune.pruning.directions import separation as separate
from hybridprune.pruning.directions.decomposition import Decomposition
from hybridprune.pruning.directions.layer_forms import ConvShape
from hybridprune.pruning.directions.layers import leaves_in_place, prunable_layers
from hybridprune.pruning.directions.rate_distortion import cut_at_budget
from hybridprune.pruning.directions.separation import most_components, separation
from hybridprune.pruning.directions.space import direction_space
from hybridprune.pruning.directions.surgery import apply_ranks
from tests.pruning.random_curvature import cells, expected_loss, fisher, forms, random_curvature, random_decompositions

IMAGES = (2, 3, 10, 10)


def network() -> nn.Sequential:
    """Its second convolution is nearly a sum of ten components, and of no low rank."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 10, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(10),
        nn.ReLU(),
        nn.Conv2d(10, 8, 1),
        nn.Flatten(),
        nn.Linear(200, 4),
    ).eval()
    near = torch.einsum("or,rk,ri->oik", torch.randn(10, 10), torch.randn(10, 9), torch.randn(10, 8)).view(10, 8, 3, 3)
    weight = net[2].get_parameter("weight")
    weight.data = near / near.std() * weight.std() + 0.01 * weight
    return net


def cost(model: nn.Module) -> Cost:
    return Cost(*count_module(model, torch.zeros(1, *IMAGES[1:])))


def planned(model: nn.Module, separable: int = 2**20, **options: Any) -> tuple[Space, dict[str, Decomposition]]:
    layers = prunable_layers(model, lambda: model(torch.zeros(1, *IMAGES[1:])))
    found = random_decompositions(layers, seed=3)
    return direction_space(
        layers, found, cost(model), limit=0.9, normalize=False, allow_increase=False, separable=separable, **options
    ), found


def cut(model: nn.Module, space: Space, kept: list[int], found: dict[str, Decomposition]) -> None:
    layers = prunable_layers(model, lambda: model(torch.zeros(1, *IMAGES[1:])))
    apply_ranks(model, layers, found, forms(space, kept))


@pytest.mark.parametrize("offsets", [False, True])
def test_the_loss_of_components_is_the_quadratic_model_of_the_fisher(offsets: bool) -> None:
    from hybridprune.pruning.methods.fisher_tucker import METHOD

    weight = torch.randn(4, 3, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    factors, moments = random_curvature(weight, seed=1, offsets=offsets)
    found = METHOD.decompose(weight, factors, moments, 1e-36)
    change = (found.separate(5).dense() - weight).flatten()
    # Calibrated by the exact trace, as the directions' scores are.
    matrix = fisher(factors, 9)
    expected = 0.5 * float(change @ matrix @ change) * moments.trace / float(matrix.trace())
    error = found._components(5, 100).error * float(found.importance.sum())
    assert error == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("multiple", [1, 4])
def test_the_most_components_cost_less_than_the_layer_and_one_step_more_does_not(bias: bool, multiple: int) -> None:
    shape = ConvShape(8, 10, 9, 100, 25, bias)
    for now in (DENSE, Ranks(6, 7), Ranks(5, None), Ranks(9, 9, separable=True)):
        for bound in (None, shape.params(now)):
            most = most_components(shape, now, bound, multiple)
            fits = [
                shape.macs(Ranks(n, n, separable=True)) < shape.macs(now)
                and (bound is None or shape.params(Ranks(n, n, separable=True)) <= bound)
                for n in (most, most + multiple)
            ]
            assert most % multiple == 0 and fits == [True, False]


def test_a_matrix_has_no_separable_form() -> None:
    assert most_components(ConvShape(8, 8, 1, 4, 4, False), DENSE, None, 1) == 0


def test_losses_never_grow_and_are_those_tried() -> None:
    model = network()
    _, found = planned(model)
    apart = separation(found["2"], 2, 25, 2.0)
    assert apart is not None and apart.everything == 26
    losses = apart.losses[2:]
    assert bool((losses.diff() <= 0).all()) and losses[-1] == 0 and bool(apart.losses[:2].isinf().all())
    assert float(apart.losses[2]) == pytest.approx(2 * found["2"].separation_loss(2))
    assert float(apart.losses[25]) == pytest.approx(2 * found["2"].separation_loss(25))
    assert bool((apart.scores.diff() <= 0).all()) and len(apart.scores) == 26
    assert separation(found["2"], 9, 8, 1.0) is None


@pytest.mark.parametrize("kind", ["macs", "params"])
@pytest.mark.parametrize(("share", "multiple"), [(0.4, 1), (0.6, 1), (0.8, 1), (0.8, 4), (0.9, 4)])
def test_the_network_costs_what_the_plan_says_within_the_budget(share: float, kind: str, multiple: int) -> None:
    model = network()
    dense = cost(model)
    budget = Budget(**{kind: share * getattr(dense, kind)})
    for _ in range(2):  # the second time on layers that are separable
        space, found = planned(model, multiple=multiple)
        assert space.cost(space.everything()) == cost(model)
        kept = cut_at_budget(space, budget)
        cut(model, space, kept, found)
        assert cost(model) == space.cost(kept) and budget.allows(cost(model))
        assert torch.isfinite(model(torch.randn(IMAGES))).all()
        budget = Budget(**{kind: 0.9 * share * getattr(dense, kind)})


def test_more_forms_never_lose_more() -> None:
    model = network()
    budget = Budget(macs=0.4 * cost(model).macs)
    losses = []
    for largest in (719, 720):  # the second convolution has 720 weights
        space, _ = planned(model, largest)
        kept = cut_at_budget(space, budget)
        losses.append(expected_loss(space, kept))
        assert forms(space, kept)["2"].separable == (largest == 720)
    assert losses[1] < losses[0]


def test_of_wide_layers_few_numbers_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    _, found = planned(network())
    shape = ConvShape(8, 10, 9, 5, 5, False)
    narrow = most_components(shape, DENSE, None, 1)
    monkeypatch.setattr(separate, "WIDE", 719)
    assert most_components(shape, DENSE, None, 1) == 3 * narrow // 4
    assert most_components(shape, DENSE, None, 4) == 3 * narrow // 4 // 4 * 4
    tried: list[int] = []
    loss = found["2"].separation_loss

    def separation_loss(self: Decomposition, rank: int) -> float:
        tried.append(rank)
        return loss(rank)

    monkeypatch.setattr(Decomposition, "separation_loss", separation_loss)
    apart = separation(found["2"], 2, 20, 1.0)
    assert tried == [2, 5, 10, 20] and apart is not None
    assert float(apart.losses[10]) == pytest.approx(loss(10))
    assert float(apart.losses[5]) > float(apart.losses[7]) > float(apart.losses[10])


def test_what_is_left_of_a_budget_is_spent_on_components() -> None:
    model = network()
    space, _ = planned(model)
    budget = Budget(macs=0.5 * cost(model).macs)
    kept = cut_at_budget(space, budget)
    for cell in cells(space):
        if len(cell.sets) == 3 and cell.ranks(tuple(kept[i] for i in cell.sets)).separable:
            more = [*kept]
            more[cell.sets[2]] += 1
            assert not budget.allows(space.cost(more))


def test_a_separable_layer_is_measured_as_the_dense_one() -> None:
    model = network()
    space, found = planned(model)
    kept = cut_at_budget(space, Budget(macs=0.5 * cost(model).macs))
    cut(model, space, kept, found)
    layer = model[2]
    assert isinstance(layer, FactoredConv2d) and form(layer).separable
    layers = prunable_layers(model, lambda: model(torch.zeros(1, *IMAGES[1:])))
    (own,) = (x for x in layers if x.name == "2")
    assert own.form == form(layer) and own.rotate_in is own.rotate_out is None
    torch.testing.assert_close(own.weight, layer.weight.detach())
    images = torch.randn(IMAGES)
    expected = model(images)
    with leaves_in_place(model, layers):
        assert model[2] is own.leaf
        torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-5)
    assert model[2] is layer
    again, _ = planned(model)
    whole = again.everything()
    before = copy.deepcopy(model.state_dict())
    cut(model, again, whole, found)  # nothing is cut: the very layers stay
    assert model[2] is layer and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
