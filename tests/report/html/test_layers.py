from __future__ import annotations

import dataclasses

import pytest
from torch import nn

from hybridprune.measure.cost import count
from hybridprune.models.edits import Edit, FactorEdit, ResizeEdit
from hybridprune.models.spec import NetworkSpec
from hybridprune.report.html.layers import draw, layers
from tests.report.html.pages import shapes

NETWORK = NetworkSpec("resnet", 8, 4, 3)
FACTORED: tuple[Edit, ...] = (
    FactorEdit("backbone.blocks.0.conv1", 2, 3),
    FactorEdit("backbone.blocks.1.conv1", 2, None),
    FactorEdit("backbone.blocks.1.conv2", None, 5),
)
NARROWER: tuple[Edit, ...] = (
    ResizeEdit("backbone.blocks.1.conv1", 4, 6),
    ResizeEdit("backbone.blocks.1.bn1", 6, 6),
    ResizeEdit("backbone.blocks.1.conv2", 6, 8),
)


@pytest.mark.parametrize("edits", [(), FACTORED, NARROWER])
def test_layers_are_those_of_the_networks_built(edits: tuple[Edit, ...]) -> None:
    network = dataclasses.replace(NETWORK, edits=edits)
    found = {layer.name: layer for layer in layers(network, 8)}
    dense = NETWORK.build().backbone
    convolutions = {name: m for name, m in dense.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert list(found) == list(convolutions)
    for name, module in convolutions.items():
        assert found[name].before == tuple(module.weight.shape[1::-1])
    for place, spec in ((0, NETWORK), (1, network)):
        assert sum(layer.macs[place] for layer in found.values()) == count(spec.build(), 8).backbone_macs
    changed = {layer.name: (layer.form, layer.after) for layer in found.values() if layer.after != layer.before}
    expected: dict[tuple[Edit, ...], dict[str, tuple[str, tuple[int, int]]]] = {
        (): {},
        FACTORED: {
            "blocks.0.conv1": ("two-sided", (2, 3)),
            "blocks.1.conv1": ("input-sided", (2, 8)),
            "blocks.1.conv2": ("output-sided", (8, 5)),
        },
        NARROWER: {"blocks.1.conv1": ("narrower", (4, 6)), "blocks.1.conv2": ("narrower", (6, 8))},
    }
    assert changed == expected[edits]
    assert {layer.form for layer in found.values() if layer.after == layer.before} == {"dense"}


def test_bars_are_as_long_as_channels_are_many() -> None:
    found = layers(dataclasses.replace(NETWORK, edits=FACTORED), 8)
    drawing = draw(found)
    lengths = [[float(bar.get("width", "")) for bar in shapes(drawing, class_)] for class_ in ("had", "kept")]
    unit = lengths[0][0] / found[0].before[0]
    assert lengths[0] == pytest.approx([unit * side for layer in found for side in layer.before], abs=0.02)
    assert lengths[1] == pytest.approx([unit * side for layer in found for side in layer.after], abs=0.02)
    assert len(shapes(drawing, "cut")) == 4  # sides that lost something
