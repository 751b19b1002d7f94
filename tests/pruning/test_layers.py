"""What pruning sees of a network: every convolution of the backbone, dense or factored, with its real geometry."""

from __future__ import annotations

from torch import nn

from hybridprune.measure.cost import module_macs
from hybridprune.models.factored import FactorEdit
from hybridprune.pruning.forms import DENSE, Ranks
from hybridprune.pruning.layers import prunable_layers
from tests.cases import random_net

EDITS = (
    FactorEdit("backbone.conv", None, 6),
    FactorEdit("backbone.blocks.1.conv1", 3, 10),
    FactorEdit("backbone.blocks.2.projection.0", 9, None),
)


def test_every_convolution_of_the_backbone_is_found_in_forward_order() -> None:
    net = random_net(8, 8)
    names = [layer.name for layer in prunable_layers(net, 8)]
    assert names == [
        name for name, module in net.backbone.named_modules(prefix="backbone") if isinstance(module, nn.Conv2d)
    ]
    assert [layer.name for layer in prunable_layers(random_net(8, 8, edits=EDITS), 8)] == names


def test_a_layers_cost_is_what_the_counter_counts() -> None:
    for edits in ((), EDITS):
        net = random_net(8, 8, edits=edits)
        macs = module_macs(net, 13)  # odd, so that a strided layer rounds up
        for layer in prunable_layers(net, 13):
            counted = sum(value for name, value in macs.items() if f"{name}.".startswith(f"{layer.name}."))
            assert layer.shape.macs(layer.form) == counted
            assert layer.shape.params(layer.form) == sum(p.numel() for p in net.get_submodule(layer.name).parameters())


def test_a_factored_layer_keeps_the_shape_of_the_whole_layer() -> None:
    dense = {layer.name: layer for layer in prunable_layers(random_net(8, 8), 8)}
    factored = {layer.name: layer for layer in prunable_layers(random_net(8, 8, edits=EDITS), 8)}
    forms = {edit.layer: Ranks(edit.rank_in, edit.rank_out) for edit in EDITS}
    for name, layer in factored.items():
        assert (layer.shape, layer.stride) == (dense[name].shape, dense[name].stride)
        assert layer.form == forms.get(name, DENSE)
    assert factored["backbone.blocks.1.conv1"].directions == Ranks(3, 10)
    assert factored["backbone.blocks.2.projection.0"].directions == Ranks(9, 32)
    assert factored["backbone.blocks.2.projection.0"].stride == (2, 2)
