"""The forms of a factored layer are one function; the clock decides, on the input that reaches the layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hybridprune.deployment.layer_variants import apply_forms, choose_forms, dense_forms, forms_of, recomposed
from hybridprune.deployment.pointwise import PointwiseProduct, is_product
from hybridprune.measure.latency import Arms, Latency
from hybridprune.models.factored import FactoredConv2d, FactoredLayer, FactoredLinear, Ranks, factored, form
from tests.deployment.networks import preferring

CONVOLUTIONS: dict[str, Mapping[str, Any]] = {
    "3x3": {"kernel_size": 3, "padding": 1},
    "3x3, strided": {"kernel_size": 3, "padding": 1, "stride": 2, "bias": False},
    "3x3, dilated": {"kernel_size": 3, "dilation": 2, "padding": "same"},
    "3x3, reflecting": {"kernel_size": (3, 1), "padding": (1, 0), "padding_mode": "reflect"},
    "1x1": {"kernel_size": 1},
    "1x1, strided": {"kernel_size": 1, "stride": (2, 1)},
}
RANKS = {"two-sided": Ranks(3, 4), "input-sided": Ranks(3, None), "output-sided": Ranks(None, 4)}


@pytest.mark.parametrize("options", CONVOLUTIONS.values(), ids=CONVOLUTIONS.keys())
@pytest.mark.parametrize("own", RANKS)
@torch.no_grad()
def test_all_forms_compute_the_same(options: Mapping[str, Any], own: str) -> None:
    torch.manual_seed(0)
    layer = factored(nn.Conv2d(5, 6, **options), *RANKS[own]).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(2, 5, 9, 8)
    _check(layer, x, own)
    _check(layer, x.to(memory_format=torch.channels_last), own)


@pytest.mark.parametrize("name", [name for name in CONVOLUTIONS if name.startswith("3x3")])
@torch.no_grad()
def test_a_separable_layer_is_dense_in_its_other_form(name: str) -> None:
    torch.manual_seed(0)
    layer = factored(nn.Conv2d(5, 6, **CONVOLUTIONS[name]), 9, 9, separable=True)
    x = torch.randn(2, 5, 9, 8).to(memory_format=torch.channels_last)
    forms = forms_of(layer)
    assert list(forms) == ["separable", "dense", "separable with products"] and forms["separable"] is layer
    for each in forms.values():
        torch.testing.assert_close(each(x), layer(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("own", RANKS)
@torch.no_grad()
def test_all_forms_of_a_linear_layer_compute_the_same(bias: bool, own: str) -> None:
    torch.manual_seed(0)
    _check(factored(nn.Linear(5, 6, bias=bias), *RANKS[own]), torch.randn(2, 7, 5), own)


def _check(layer: FactoredLayer, x: Tensor, own: str) -> None:
    forms = forms_of(layer)
    names = ["two-sided", "input-sided", "output-sided", "dense"] if own == "two-sided" else [own, "dense"]
    convolutions = isinstance(layer, FactoredConv2d)
    plain = convolutions and is_product(forms["dense"])
    names += [f"{name} with products" for name in names if convolutions and (name != "dense" or plain)]
    assert list(forms) == names and forms[own] is layer
    for name, module in forms.items():
        torch.testing.assert_close(module(x), layer(x), rtol=1e-5, atol=1e-5)
        products = {each for each, part in module.named_modules() if isinstance(part, PointwiseProduct)}
        name, _, variant = name.partition(" with ")
        kernels = {each for each, part in module.named_modules() if _is_1x1(part)}
        assert products == (kernels if variant else set())
        if name == "dense":
            assert isinstance(module, nn.Conv2d | nn.Linear)
        else:
            assert isinstance(module, FactoredConv2d | FactoredLinear) and form(module) == RANKS[name]


def _is_1x1(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.stride == (1, 1)


@torch.no_grad()
def test_a_shift_before_the_padding_keeps_the_form() -> None:
    layer = factored(nn.Conv2d(5, 6, 3, padding=1), 3, 4)
    assert isinstance(layer.rotate_in, nn.Conv2d)
    layer.rotate_in.bias = nn.Parameter(torch.ones(3))
    assert list(forms_of(layer)) == ["two-sided", "two-sided with products"]
    assert recomposed(nn.Sequential(layer)) == {}


@torch.no_grad()
def test_the_fastest_form_on_the_layers_own_input_is_kept() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), factored(nn.Conv2d(5, 6, 3), 2, 3), nn.Flatten(), nn.Identity())
    net.append(factored(nn.Linear(6 * 16, 4), 5, None))
    net.idle = factored(nn.Linear(5, 4), 2, None)
    images = torch.randn(8, 3, 8, 8)
    expected, inner = net[:6](images), net[:2](images)
    seen: list[Tensor] = []

    def time(arms: Arms) -> dict[str, Latency]:
        seen.append(next(iter(arms.values()))())  # type: ignore[arg-type]
        return dict(preferring("output-sided", "dense")(arms))

    own = net[2](inner[:3])
    choices = choose_forms(net, lambda: net[:6](images), lambda name: 0.4 if name == "2" else 0.01, time)
    assert {name: (choice.before, choice.chosen) for name, choice in choices.items()} == {
        "2": ("two-sided", "output-sided"),
        "5": ("input-sided", "dense"),
    }
    assert torch.equal(seen[0], own) and len(seen[1]) == 1
    assert next(iter(forms_of(net[2]))) == "two-sided", "choosing changes nothing"
    assert recomposed(net) == {"2": "dense", "5": "dense", "idle": "dense"}
    assert {name: choice.chosen for name, choice in dense_forms(choices).items()} == {"2": "dense", "5": "dense"}
    apply_forms(net, {name: choice.chosen for name, choice in choices.items()})
    kept = net[2]
    assert isinstance(kept, FactoredConv2d) and form(kept) == Ranks(None, 3)
    assert isinstance(net[5], nn.Linear) and isinstance(net.idle, FactoredLinear)
    torch.testing.assert_close(net[:6](images), expected)
    assert all(not module._forward_pre_hooks for module in net.modules())
