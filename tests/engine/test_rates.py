"""Learning rates of separable layers: eigenvalues against the materialised matrix, and steps that stay bounded."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hybridprune.engine.pressure import parameter_groups
from hybridprune.engine.rates import lr_factors
from hybridprune.models.factored import FactoredConv2d
from hybridprune.models.replace import replace_module


def separable(scale: float = 1.0) -> FactoredConv2d:
    torch.manual_seed(0)
    layer = FactoredConv2d(nn.Conv2d(3, 4, 3), 6, 6, separable=True).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=scale)
    return layer


def jacobian(layer: FactoredConv2d, name: str) -> Tensor:
    """``dW / d parameter`` ``[entries of W, entries of the parameter]``."""
    weights = dict(layer.named_parameters())

    def product(value: Tensor) -> Tensor:
        parts = {key: value if key == name else each for key, each in weights.items()}
        o, c, i = (parts[f"{side}.weight"].flatten(1) for side in ("rotate_out", "core", "rotate_in"))
        return torch.einsum("or,rk,ri->oik", o, c, i).flatten()

    found = torch.autograd.functional.jacobian(product, weights[name].detach())
    assert isinstance(found, Tensor)
    return found.flatten(1)


def test_the_factor_is_one_over_the_largest_eigenvalues_of_the_materialised_matrices() -> None:
    layer = separable()
    names = [f"{side}.weight" for side in ("rotate_out", "core", "rotate_in")]
    jacobians = [jacobian(layer, name) for name in names]
    largest = sum(float(torch.linalg.eigvalsh(each @ each.T)[-1]) for each in jacobians)
    assert lr_factors(layer) == {name: pytest.approx(1 / largest) for name in names}


def test_a_step_moves_the_weight_no_further_than_a_dense_layers_step() -> None:
    layer = separable()
    gradient = torch.randn(4, 3, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (layer.product(torch.float64) * gradient).sum().backward()
    factors, rate, before = lr_factors(layer), 1e-6, layer.product(torch.float64).detach()
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if name in factors:
                assert parameter.grad is not None
                parameter -= rate * factors[name] * parameter.grad
    moved = (layer.product(torch.float64).detach() - before).norm()
    assert 0 < float(moved) <= rate * float(gradient.norm()) * 1.001


def test_small_factors_and_other_layers_take_the_common_rate() -> None:
    assert set(lr_factors(separable(1e-3)).values()) == {1.0}
    net = nn.Sequential(nn.Conv2d(3, 4, 3), FactoredConv2d(nn.Conv2d(4, 4, 3), 2, 2), nn.Linear(4, 2))
    assert lr_factors(net) == {}
    replace_module(net, "1", separable())
    assert set(lr_factors(net, "backbone")) == {
        f"backbone.1.{side}.weight" for side in ("rotate_out", "core", "rotate_in")
    }


def test_the_groups_of_an_optimiser_do_not_depend_on_the_weights() -> None:
    def groups(*scales: float) -> list[tuple[int, float]]:
        net = nn.Sequential(*(separable(scale) for scale in scales), nn.Linear(2, 2)).double()
        found = parameter_groups(net.named_parameters(), None, 2.0, lr_factors(net))
        return [(len(group["params"]), group["factor"]) for group in found]

    small = groups(1e-3, 1e-3)
    assert small == [(4, 2.0), (3, 2.0), (3, 2.0)]  # two biases and the linear layer; two separable layers
    for scales in ((1.0, 1.0), (1.0, 1e-3), (0.7, 1.0)):
        large = groups(*scales)
        assert [size for size, _ in large] == [4, 3, 3] and large[0][1] == 2.0
        assert [factor < 2.0 for _, factor in large[1:]] == [scale > 0.5 for scale in scales]
