"""1x1 convolutions as matrix products: the same function and memory format, wherever the network takes them."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hybridprune.deployment import DeployedNetwork, deploy, load_deployed, save_deployed
from hybridprune.deployment.agreement import compare
from hybridprune.deployment.onnx import onnx_bytes, opened
from hybridprune.deployment.pointwise import PointwiseProduct, is_product, spell_out_products
from hybridprune.deployment.program import Exportable, export_program
from hybridprune.measure.cost import count, counted
from hybridprune.models.factored import FactoredLayer
from tests.deployment.networks import SPECS, assert_close, built, preferring, told
from tests.deployment.test_store import SIZE, run_of
from tests.networks_and_images import random_images

FORMS = ("two-sided with products", "input-sided with products", "output-sided with products", "dense with products")
FORMATS = [torch.channels_last, torch.contiguous_format]


@given(
    batch=st.integers(1, 3),
    channels=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    size=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    bias=st.booleans(),
    format=st.sampled_from(FORMATS),
    step=st.sampled_from([1, 2]),
)
@torch.no_grad()
def test_a_product_is_the_convolution(
    batch: int, channels: tuple[int, int], size: tuple[int, int], bias: bool, format: torch.memory_format, step: int
) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(*channels, 1, bias=bias).to(memory_format=format)  # type: ignore[call-overload]
    x = torch.randn(batch, channels[0], *size).to(memory_format=format)[:, :, ::step, ::step]
    product, expected = PointwiseProduct(conv), conv(x)
    assert product.weight is conv.weight and product.bias is conv.bias
    found, macs = counted(lambda: product(x))
    torch.testing.assert_close(found, expected)
    assert macs == x[:, 0].numel() * channels[0] * channels[1]
    assert is_product(conv) == (channels[0] > 1)
    if is_product(conv):  # code behind may view it as one or the other
        for each in FORMATS:
            assert found.is_contiguous(memory_format=each) >= expected.is_contiguous(memory_format=each)
    back = nn.Sequential(product)
    spell_out_products(back)
    assert (
        type(back[0]) is nn.Conv2d
        and torch.equal(back(x), expected)
        and back.state_dict().keys() == (nn.Sequential(conv).state_dict().keys())
    )


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 4, 1, stride=2),
        nn.Conv2d(4, 4, 1, padding=1),
        nn.Conv2d(4, 4, 1, groups=2),
        nn.Conv2d(4, 4, (1, 3)),
        nn.LazyConv2d(4, 1),
        nn.Linear(4, 4),
    ],
    ids=str,
)
def test_what_is_no_product(conv: nn.Module) -> None:
    assert not is_product(conv)


def test_only_images_in_channels_last_are_multiplied() -> None:
    product = PointwiseProduct(nn.Conv2d(4, 3, 1))
    for format, operator in zip(FORMATS, ("addmm", "convolution"), strict=True):
        with FlopCounterMode(display=False) as counter:
            product(torch.randn(2, 4, 3, 3).to(memory_format=format))
        assert [str(each) for each in counter.get_flop_counts()["Global"]] == [f"aten.{operator}"]
    assert product(torch.randn(4, 3, 1)).shape == (3, 3, 1), "a convolution takes an image without a batch, too"


def images_of(batch: int, format: torch.memory_format = torch.channels_last, size: int = SIZE) -> Tensor:
    return random_images(batch, size).to(memory_format=format)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("name", "form"),
    [
        *itertools.product(("resnet, factored", "preresnet, bottleneck, factored"), FORMS),
        ("resnet", "dense with products"),
        ("vgg, factored", "output-sided with products"),
    ],
)
@torch.no_grad()
def test_deployed_with_products(name: str, batch: int, form: str) -> None:
    net, images = built(SPECS[name]), images_of(batch)
    time = told(lambda arms: next((a for a in (form, "dense with products", "blend") if a in arms), arms[0]))
    module, report = deploy(net, images, time=time)
    assert products_of(module) and all(
        choice.chosen == form for choice in report.forms.values() if form in choice.latencies
    )
    # All that there were: nothing that could be a product is none, but in forms that were not preferred.
    others = [n for n, each in module.named_modules() if is_product(each) and "products" in form]
    kept = [n for n, each in module.named_modules() if isinstance(each, FactoredLayer)]
    assert all("gate" in n or any(n.startswith(f"{layer}.") for layer in kept) for n in others), others
    for format in FORMATS:
        more = images_of(5, format)
        if isinstance(module, DeployedNetwork):
            assert torch.equal(module.route(more).decisions, net(more).decisions)
            assert_close(module.route(more).logits, net(more).logits)
        else:
            assert_close(module(more), net(more).logits)


@torch.no_grad()
def test_products_are_not_offered_to_other_formats_and_counted_alike() -> None:
    net, rates = built(SPECS["resnet, factored"]), [0.5] * 5
    plain = deploy(net, images_of(2, torch.contiguous_format), rates=rates, time=preferring("two-sided")).report
    assert all("products" not in each for choice in plain.forms.values() for each in choice.latencies)
    assert "backbone.blocks.4.projection.0" not in plain.forms
    time = preferring("two-sided with products", "dense with products")
    report = deploy(net, images_of(2), rates=rates, time=time).report
    assert report.forms["backbone.blocks.2.projection.0"].chosen == "two-sided with products"
    assert report.macs_before == count(net, SIZE).expected_macs(rates)
    assert (report.macs_after, report.params_after) == (plain.macs_after, plain.params_after)


@pytest.mark.parametrize("name", ["pyramidnet, factored", "vgg, factored"])
@torch.no_grad()
def test_scalings_are_folded_into_products_and_all_of_it_is_stored(name: str, tmp_path: Path) -> None:
    net, images = built(SPECS[name]), images_of(4)
    deployed = deploy(net, images, time=preferring(*FORMS))
    if name.startswith("pyramidnet"):
        into = [deployed.module.get_submodule(_step(each)) for each in deployed.report.folded_inputs.values()]
        assert any(isinstance(each, PointwiseProduct) for each in into)
    save_deployed(deployed, run_of(SPECS[name]), tmp_path)
    loaded, _ = load_deployed(tmp_path)
    assert torch.equal(loaded(images), deployed.module(images))
    assert products_of(loaded) == products_of(deployed.module) != []


@pytest.mark.full
@pytest.mark.parametrize("name", ["vgg, factored", pytest.param("pyramidnet, factored", marks=pytest.mark.full)])
@torch.no_grad()
def test_exporters_get_convolutions(name: str) -> None:
    images = images_of(4)
    module = deploy(built(SPECS[name]), images, time=preferring(*FORMS)).module
    products = products_of(module)
    content = onnx_bytes(module, images)
    found = compare(opened(content), module, [images.contiguous()])
    assert found.good and found.difference < 1e-4, found
    assert products_of(Exportable(module, single=False)) == []
    program = export_program(module, images).module()
    output = program(images.contiguous())
    assert_close(output[0] if isinstance(output, tuple) else output, module(images))
    assert products_of(module) == products != [], "exporting changes nothing"


def products_of(module: nn.Module) -> list[str]:
    return [name for name, each in module.named_modules() if isinstance(each, PointwiseProduct)]


def _step(name: str) -> str:
    """Where a layer of the backbone is in the deployed network."""
    parts = name.split(".")
    return ".".join(["steps", parts[2], "block", *parts[3:]] if parts[1] == "blocks" else parts)
