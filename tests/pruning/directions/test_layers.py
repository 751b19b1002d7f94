"""What pruning sees of any network: which layers it may cut, and their real geometry."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm

from hybridprune.measure.cost import module_macs
from hybridprune.models.edits import FactorEdit, apply_edits
from hybridprune.models.factored import DENSE, FactoredConv2d, FactoredLinear, Ranks
from hybridprune.pruning.directions.layer_forms import ConvShape
from hybridprune.pruning.directions.layers import PrunableLayer, prunable_layers
from tests.networks_and_images import random_net
from tests.pruning.random_curvature import layers_of

EDITS = (
    FactorEdit("backbone.conv", None, 6),
    FactorEdit("backbone.blocks.1.conv1", 3, 10),
    FactorEdit("backbone.blocks.2.projection.0", 9, None),
    FactorEdit("backbone.classifier", 7, None),
)


def layers_in(model: nn.Module, *shape: int, exclude: Sequence[str] = ()) -> dict[str, PrunableLayer]:
    return {layer.name: layer for layer in prunable_layers(model, lambda: model(torch.zeros(1, *shape)), exclude)}


def test_every_layer_of_the_backbone_is_found_in_the_models_order() -> None:
    net = random_net(8, 8)
    names = [layer.name for layer in layers_of(net)]
    assert names == [
        name
        for name, module in net.backbone.named_modules(prefix="backbone")
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    assert [layer.name for layer in layers_of(random_net(8, 8, edits=EDITS))] == names


def test_a_layers_cost_is_what_the_counter_counts() -> None:
    for edits in ((), EDITS):
        net = random_net(8, 8, edits=edits)
        macs = module_macs(net, 13)  # odd, so that a strided layer rounds up
        for layer in layers_of(net, 13):
            counted = sum(value for name, value in macs.items() if f"{name}.".startswith(f"{layer.name}."))
            assert layer.shape.macs(layer.form) == counted
            assert layer.shape.params(layer.form) == sum(p.numel() for p in net.get_submodule(layer.name).parameters())


def test_a_factored_layer_keeps_the_shape_of_the_whole_layer() -> None:
    dense = {layer.name: layer for layer in layers_of(random_net(8, 8))}
    net = random_net(8, 8, edits=EDITS)
    factored = {layer.name: layer for layer in layers_of(net)}
    forms = {edit.layer: Ranks(edit.rank_in, edit.rank_out) for edit in EDITS}
    for name, layer in factored.items():
        assert (layer.shape, layer.stride) == (dense[name].shape, dense[name].stride)
        assert layer.form == forms.get(name, DENSE)
    conv1, projection = factored["backbone.blocks.1.conv1"], factored["backbone.blocks.2.projection.0"]
    assert conv1.directions == (3, 10)
    assert projection.directions == (9, 32)
    assert projection.stride == (1, 1) and factored["backbone.blocks.2.conv1"].stride == (2, 2)
    assert factored["backbone.classifier"].directions == (7, 5)
    module = net.get_submodule(conv1.name)
    assert isinstance(module, FactoredConv2d) and isinstance(module.rotate_out, nn.Conv2d)
    assert conv1.leaf is module.core
    assert conv1.rotate_in is not None and conv1.rotate_in.shape == (3, 8)
    assert conv1.rotate_out is not None and torch.equal(conv1.rotate_out, module.rotate_out.weight[:, :, 0, 0])
    assert projection.rotate_out is None


@pytest.mark.parametrize(
    ("conv", "in_positions", "out_positions"),
    [
        (nn.Conv2d(3, 4, 3, 1, 1), 9 * 7, 9 * 7),
        (nn.Conv2d(3, 4, 3, 2, 1, bias=False), 9 * 7, 5 * 4),
        (nn.Conv2d(3, 4, 3, (1, 2), 0), 9 * 7, 7 * 3),
        (nn.Conv2d(3, 4, 3, 1, 2, dilation=2), 9 * 7, 9 * 7),
        (nn.Conv2d(3, 4, (1, 3), 1, "same"), 9 * 7, 9 * 7),
        (nn.Conv2d(3, 4, 1), 9 * 7, 9 * 7),
        (nn.Conv2d(3, 4, 1, 2), 5 * 4, 5 * 4),  # subsamples first
        (nn.Conv2d(3, 4, 1, 2, 1), 9 * 7, 6 * 5),  # reads the padding, so it cannot
    ],
)
def test_positions_in_closed_form(conv: nn.Conv2d, in_positions: int, out_positions: int) -> None:
    area = conv.kernel_size[0] * conv.kernel_size[1]
    expected = ConvShape(3, 4, area, in_positions, out_positions, conv.bias is not None)
    (dense,) = layers_in(nn.Sequential(conv), 3, 9, 7).values()
    assert dense.shape == expected and dense.stride == conv.stride and dense.leaf is conv
    for form in (Ranks(2, 3), Ranks(2, None), Ranks(None, 3)):
        (factored,) = layers_in(nn.Sequential(FactoredConv2d(conv, *form)), 3, 9, 7).values()
        assert (factored.shape, factored.stride, factored.form) == (expected, conv.stride, form)


@pytest.mark.parametrize("tokens", [(), (1,), (6,), (2, 3)])
def test_a_linear_layer_runs_once_for_each_token(tokens: tuple[int, ...]) -> None:
    positions = int(torch.tensor(tokens).prod()) if tokens else 1
    for layer, form in ((nn.Linear(5, 7), DENSE), (FactoredLinear(nn.Linear(5, 7), 2, 3), Ranks(2, 3))):
        (found,) = layers_in(nn.Sequential(layer), *tokens, 5).values()
        assert found.shape == ConvShape(5, 7, 1, positions, positions, bias=True)
        assert found.form == form and found.weight.shape == (*reversed(found.directions), 1, 1)


class Twice(nn.Linear):
    """A subclass may do anything."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Zoo(nn.Module):
    """Layers that can be cut, and layers that must be left alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.grouped = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.reflecting = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
        self.lopsided = nn.Conv2d(4, 4, 2, padding="same")
        self.transposed = nn.ConvTranspose2d(4, 4, 3, padding=1)
        self.twice = nn.Conv2d(4, 4, 1)
        self.never = nn.Conv2d(4, 4, 1)
        self.one, self.other = nn.Linear(4, 4), nn.Linear(4, 4)
        self.other.weight = self.one.weight
        self.subclass = Twice(4, 4)
        self.parametrized = parametrizations.weight_norm(nn.Linear(4, 4))
        self.computed = spectral_norm(nn.Linear(4, 4))
        self.dropout = nn.Dropout()
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = self.depthwise(self.grouped(x)) + self.lopsided(self.reflecting(x)) + self.transposed(x)
        x = self.twice(F.relu(self.twice(x))).mean((2, 3))
        x = self.subclass(self.dropout(self.one(x))) + self.other(x)
        return self.head(self.parametrized(x) + self.computed(x))


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
def test_what_cannot_be_cut_locally_is_left_alone() -> None:
    torch.manual_seed(0)
    assert list(layers_in(Zoo(), 3, 8, 8)) == ["stem", "head"]


def test_a_factored_layer_is_left_alone_for_the_same_reasons() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.twice = FactoredLinear(nn.Linear(4, 4), 2, 2)
            self.never = FactoredLinear(nn.Linear(4, 4), 2, 2)
            self.once = FactoredLinear(nn.Linear(4, 4), 2, None)

        def forward(self, x: Tensor) -> Tensor:
            return self.once(self.twice(self.twice(x)))

    assert list(layers_in(Shared(), 4)) == ["once"]


def test_excluded_names_and_patterns() -> None:
    net = random_net(8, 4)
    example = torch.zeros(1, 3, 8, 8)

    def names(*exclude: str) -> list[str]:
        return [layer.name for layer in prunable_layers(net, lambda: net(example), exclude)]

    everything = names("gate.*")
    assert "backbone.conv" in everything and not any(name.startswith("gate.") for name in everything)
    assert names("gate.*", "backbone.conv") == [name for name in everything if name != "backbone.conv"]
    assert names("gate.*", "*.conv1", "*classifier") == [
        name for name in everything if not name.endswith(("conv1", "classifier"))
    ]
    assert names("*") == []
    factored = nn.Sequential(FactoredConv2d(nn.Conv2d(3, 4, 1), 2, 2))
    assert layers_in(factored, 3, 8, 8, exclude=("0",)) == {}


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
def test_looking_leaves_no_trace() -> None:
    torch.manual_seed(0)
    model = Zoo().train()
    model.norm.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def assert_untouched() -> None:
        assert {name: module.training for name, module in model.named_modules()} == modes
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name]), name
        assert not any(m._forward_hooks for m in model.modules())
        assert all(p.grad is None for p in model.parameters())

    layers_in(model, 3, 8, 8)
    assert_untouched()
    with pytest.raises(RuntimeError):
        layers_in(model, 5, 8, 8)
    assert_untouched()


def test_edits_of_the_layers_found_can_be_applied() -> None:
    """The names are those that a rebuilt network answers to."""
    net = random_net(8, 4)
    apply_edits(net, tuple(FactorEdit(layer.name, 2, None) for layer in layers_of(net)))
    assert all(layer.form == Ranks(2, None) for layer in layers_of(net))
