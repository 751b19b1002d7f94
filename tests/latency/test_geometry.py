"""What a layer's time depends on, as a pass shows it, and layers that are made of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hybridprune.latency.geometry import Geometry, geometries, separates
from hybridprune.latency.points import DENSITIES, axis, channel_axes, expected_ns, form_axes, points
from hybridprune.latency.table import AXES, CHANNELS
from hybridprune.measure.cost import count_module
from hybridprune.models.factored import DENSE, FactoredConv2d, FactoredLayer, FactoredLinear, form

LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "3x3": (nn.Conv2d(6, 9, 3, padding=1), (6, 8, 8)),
    "strided": (nn.Conv2d(6, 9, 3, 2, 1, bias=False), (6, 8, 8)),
    "1x1 strided": (nn.Conv2d(6, 9, 1, 2), (6, 8, 8)),
    "dilated": (nn.Conv2d(6, 9, (3, 1), padding="same", dilation=2), (6, 8, 8)),
    "depthwise": (nn.Conv2d(6, 6, 3, padding=1, groups=6), (6, 8, 8)),
    "linear": (nn.Linear(6, 9), (6,)),
    "tokens": (nn.Linear(6, 9), (5, 6)),
    "two-sided": (FactoredConv2d(nn.Conv2d(6, 9, 3, 2, 1), 3, 4), (6, 8, 8)),
    "factored linear": (FactoredLinear(nn.Linear(6, 9), 3, None), (6,)),
}


def traced(name: str) -> dict[str, Geometry]:
    layer, size = LAYERS[name]
    net = nn.Sequential(layer).eval()
    return geometries(net, lambda: net(torch.randn(1, *size)))


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_of_the_geometry_is_like_the_layer(name: str) -> None:
    layer, size = LAYERS[name]
    found = traced(name)
    geometry = found["0"]
    assert (len(found) > 1) == isinstance(layer, FactoredLayer)  # with the parts of a factored one
    ranks = form(layer) if isinstance(layer, FactoredLayer) else DENSE
    made, x = geometry.layer(ranks), geometry.images(3)
    assert x.shape == (3, *size) and made(x).shape == layer(x).shape
    shapes = {name: value.shape for name, value in layer.state_dict().items() if not name.endswith("bias")}
    assert {name: value.shape for name, value in made.state_dict().items() if not name.endswith("bias")} == shapes
    macs = count_module(nn.Sequential(made), x[:1])[0]
    assert geometry.macs(ranks) == pytest.approx(macs, rel=0.01)
    assert separates(geometry) == (name in ("3x3", "strided", "dilated", "two-sided"))


def test_making_layers_draws_no_numbers_of_the_callers() -> None:
    geometry = traced("3x3")["0"]
    before = torch.get_rng_state()
    geometry.layer()
    geometry.images(2)
    assert torch.get_rng_state().equal(before)


def test_what_has_no_cell_has_no_geometry() -> None:
    net = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1, padding_mode="reflect"), nn.Conv2d(6, 6, 1, groups=2))
    assert geometries(net, lambda: net(torch.randn(1, 6, 8, 8))) == {}


@pytest.mark.parametrize("count", DENSITIES)
@pytest.mark.parametrize(("least", "full"), [(1, 1), (1, 3), (1, 16), (2, 64), (8, 100), (1, 512)])
def test_an_axis_has_both_ends_and_no_more_points_than_asked_for(least: int, full: int, count: int) -> None:
    found = axis(least, full, count)
    assert found == sorted(set(found)) and found[0] == least and found[-1] == full and len(found) <= max(count, 1) + 1
    assert len(found) == full - least + 1 or len(found) >= min(count, 2)
    if full >= 8 * count:
        assert all(each % 8 == 0 for each in found[1:-1])


@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize("name", ["3x3", "1x1 strided", "linear", "tokens"])
def test_every_point_is_a_layer_of_its_form(name: str, multiple: int) -> None:
    geometry = traced(name)["0"]
    axes = form_axes(geometry, 3, multiple)
    assert axes.keys() == AXES.keys() - (set() if separates(geometry) else {"separable"})
    for point in points(axes):
        layer = geometry.layer(point.ranks, *point.channels(geometry))
        assert (form(layer) if isinstance(layer, FactoredLayer) else DENSE) == point.ranks
        if point.grid == "separable":
            assert point.place[0] % multiple == 0
    assert expected_ns(geometry, axes, 1e6) > expected_ns(geometry, form_axes(geometry, 2, multiple), 1e6)


def test_points_of_channels_are_narrower_layers() -> None:
    for name in ("3x3", "depthwise"):
        geometry = traced(name)["0"]
        for point in points(channel_axes(geometry, 3, 1)):
            inputs, outputs = point.channels(geometry)
            layer = geometry.layer(point.ranks, inputs, outputs)
            assert isinstance(layer, nn.Conv2d) and layer.out_channels == outputs and point.grid == CHANNELS
            assert name == "depthwise" or layer.in_channels == inputs
