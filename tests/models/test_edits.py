"""Edits that resize layers: the architecture they rebuild takes the weights strictly and computes the same."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

from hybridprune.models.edits import FactorEdit, ResizeEdit, apply_edits, edit_from_json, edits_between, resize
from hybridprune.models.factored import FactoredConv2d
from hybridprune.models.replace import replace_module


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1, padding_mode="reflect")
        self.bn = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.grouped = nn.Conv2d(8, 8, (1, 3), dilation=(1, 2), groups=2)
        self.point = nn.Conv2d(8, 6, 1)
        self.plain = nn.BatchNorm2d(6, affine=False)
        self.classifier = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.depthwise(torch.relu(self.bn(self.stem(x))))
        return self.classifier(self.plain(self.point(self.grouped(x))).mean((2, 3)))


EDITS = (
    ResizeEdit("stem", 3, 4),
    ResizeEdit("bn", 4, 4),
    ResizeEdit("depthwise", 4, 4),
    ResizeEdit("grouped", 4, 8),
    ResizeEdit("point", 8, 3),
    ResizeEdit("plain", 3, 3),
    ResizeEdit("classifier", 3, 5),
)


def narrow() -> nn.Module:
    """The narrow network, made by hand, with weights of its own."""
    torch.manual_seed(0)
    net = Net()
    net.stem = nn.Conv2d(3, 4, 3, 2, 1, padding_mode="reflect")
    net.bn = nn.BatchNorm2d(4)
    net.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False)
    net.grouped = nn.Conv2d(4, 8, (1, 3), dilation=(1, 2), groups=2)
    net.point = nn.Conv2d(8, 3, 1)
    net.plain = nn.BatchNorm2d(3, affine=False)
    net.classifier = nn.Linear(3, 5)
    net(torch.randn(4, 3, 16, 16))  # running statistics of its own
    return net.eval()


def test_edits_are_the_differences() -> None:
    assert edits_between(Net(), narrow()) == EDITS
    assert edits_between(Net(), Net()) == ()


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_rebuilt_network_computes_the_same(device: str) -> None:
    net = narrow()
    edits = tuple(edit_from_json(json.loads(json.dumps(edit.to_json()))) for edit in edits_between(Net(), net))
    assert edits == EDITS
    with torch.device(device):
        fresh = Net().eval()
    apply_edits(fresh, edits)
    fresh.load_state_dict(net.state_dict(), strict=True, assign=device == "meta")
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(fresh(images), net(images))


def test_a_resized_layer_is_a_new_one_of_the_same_kind() -> None:
    class Special(nn.Conv2d):
        pass

    layer = Special(4, 6, 3, bias=False, dtype=torch.float64).eval().requires_grad_(False)
    before = copy.deepcopy(layer.state_dict())
    new = resize(layer, 2, 3)
    assert isinstance(new, Special) and new.weight.shape == (3, 2, 3, 3) and new.weight.dtype == torch.float64
    assert not new.training and not new.weight.requires_grad
    assert layer.weight.shape == (6, 4, 3, 3) and torch.equal(layer.weight, before["weight"])


@pytest.mark.parametrize(
    ("layer", "sizes"),
    [
        (nn.BatchNorm2d(4), (2, 3)),
        (nn.Conv2d(4, 4, 3, groups=4), (2, 4)),
        (nn.Conv2d(4, 6, 3, groups=2), (3, 6)),
        (nn.Conv2d(4, 6, 3, groups=2), (4, 5)),
        (nn.Linear(4, 6), (0, 6)),
        (nn.LayerNorm(4), (4, 4)),
    ],
)
def test_impossible_sizes_are_refused(layer: nn.Module, sizes: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"cannot|no layer"):
        resize(layer, *sizes)


def test_an_edit_of_another_network_is_refused() -> None:
    for edit in (ResizeEdit("stem.core", 2, 2), ResizeEdit("elsewhere", 2, 2), ResizeEdit("bn", 2, 3)):
        with pytest.raises(ValueError, match=edit.layer):
            apply_edits(Net(), [edit])


@pytest.mark.parametrize(
    "record",
    [
        {"kind": "other", "layer": "stem", "in_channels": 1, "out_channels": 1},
        {"kind": "resize", "layer": "stem", "in_channels": 1},
        {"kind": "resize", "layer": "stem", "in_channels": 1.5, "out_channels": 1},
        {"kind": "resize", "layer": "stem", "in_channels": True, "out_channels": 1},
    ],
)
def test_broken_records_are_refused(record: dict[str, object]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        edit_from_json(record)


def test_a_layer_may_be_resized_and_then_factored() -> None:
    net = narrow()
    point = net.get_submodule("point")
    assert isinstance(point, nn.Conv2d)
    replace_module(net, "point", FactoredConv2d(point, 2, None))
    edits = edits_between(Net(), net)
    assert edits == (FactorEdit("point", 2, None), *EDITS)
    fresh = Net().eval()
    apply_edits(fresh, edits)
    fresh.load_state_dict(net.state_dict(), strict=True)
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(fresh(images), net(images))


def test_a_layer_that_was_factored_before() -> None:
    def factored(rank_in: int | None, rank_out: int | None) -> Net:
        net = Net()
        replace_module(net, "point", FactoredConv2d(net.point, rank_in, rank_out))
        return net

    assert edits_between(factored(4, 3), factored(4, 3)) == ()
    once = (FactorEdit("point", 4, 3),)
    for edited, edit in (
        (factored(2, 3), FactorEdit("point", 2, 3)),
        (factored(None, 2), FactorEdit("point", None, 2)),
        (Net(), FactorEdit("point", None, None)),
    ):
        assert edits_between(factored(4, 3), edited) == edits_between(factored(4, 3), edited, once) == (edit,)
        for fresh in (Net(), factored(4, 3)):
            apply_edits(fresh, [edit])
            fresh.load_state_dict(edited.state_dict(), strict=True)
    # What another layer than the factored one became does not make the factored one dense again.
    assert edits_between(factored(4, 3), factored(4, 3), once) == once


def test_a_factored_layer_may_have_become_narrower_than_its_ranks() -> None:
    layers = [nn.Sequential(nn.Conv2d(8, 8, 1)) for _ in range(2)]
    apply_edits(layers[0], [FactorEdit("0", 5, 6), ResizeEdit("0", 4, 3)])
    edits = edits_between(layers[1], layers[0])
    assert edits == (FactorEdit("0", 5, 6), ResizeEdit("0", 4, 3))
    for fresh in layers:
        apply_edits(fresh, edits)
        assert [tuple(p.shape) for p in fresh.parameters()] == [(5, 4, 1, 1), (6, 5, 1, 1), (3, 6, 1, 1), (3,)]


def test_a_factored_layer_is_resized_by_the_channels_that_it_connects() -> None:
    point = FactoredConv2d(nn.Conv2d(8, 6, 3, padding=1, dtype=torch.float64), 4, None).eval()
    new = resize(point, 5, 4)
    assert isinstance(new, FactoredConv2d) and (new.in_channels, new.out_channels, new.training) == (5, 4, False)
    assert [tuple(p.shape) for p in new.parameters()] == [(4, 5, 1, 1), (4, 4, 3, 3), (4,)]
    assert new.weight.dtype == torch.float64


def test_a_separable_layer_is_rebuilt_from_its_edit() -> None:
    edit = FactorEdit("stem", 20, 20, separable=True)
    net, again = Net(), Net()
    apply_edits(net, (edit,))
    layer = net.stem
    assert isinstance(layer, FactoredConv2d) and layer.core.groups == 20 and layer.padding_mode == "reflect"
    assert edits_between(Net(), net) == (edit,)
    record = json.loads(json.dumps(edit.to_json()))
    assert edit_from_json(record) == edit and record["separable"] is True
    apply_edits(again, (edit_from_json(record),))
    again.load_state_dict(net.state_dict())
    x = torch.randn(2, 3, 12, 12)
    torch.testing.assert_close(again.eval()(x), net.eval()(x))
    # From form to form and back.
    apply_edits(net, (FactorEdit("stem", 2, 3),))
    assert edits_between(Net(), net) == (FactorEdit("stem", 2, 3),)
    apply_edits(net, (edit,))
    apply_edits(net, (ResizeEdit("stem", 3, 4), ResizeEdit("bn", 4, 4)))
    assert isinstance(net.stem, FactoredConv2d) and net.stem.channels == (3, 4) and net.stem.core.groups == 20


def test_records_of_other_forms_do_not_speak_of_components() -> None:
    assert FactorEdit("stem", 2, None).to_json() == {"layer": "stem", "rank_in": 2, "rank_out": None}


@pytest.mark.parametrize("ranks", [(1, 1), (2, 3), (None, 4), (25, 25)])
def test_wrong_numbers_of_components_are_refused(ranks: tuple[int | None, int | None]) -> None:
    with pytest.raises(ValueError, match="components"):
        apply_edits(Net(), (FactorEdit("stem", *ranks, separable=True),))


def test_a_linear_layer_is_not_separable() -> None:
    with pytest.raises(ValueError, match="separable"):
        apply_edits(Net(), (FactorEdit("classifier", 3, 3, separable=True),))
    with pytest.raises(ValueError, match="separable"):
        edit_from_json({"layer": "stem", "rank_in": 2, "rank_out": 2, "separable": 1})
