"""Branched convolutions against the masked dense one, their cost, and the edits that rebuild them."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import Tensor, nn

from hybridprune.measure.cost import count_module
from hybridprune.models.branched import BranchedConv2d, branched, unbranched
from hybridprune.models.edits import BranchEdit, ResizeEdit, apply_edits, edit_from_json, edits_between

CONVOLUTIONS = {
    "padded": lambda inputs: nn.Conv2d(inputs, 7, 3, padding=1, bias=False),
    "strided, with bias": lambda inputs: nn.Conv2d(inputs, 7, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
    "strided 1x1": lambda inputs: nn.Conv2d(inputs, 7, 1, stride=2),
    "reflecting": lambda inputs: nn.Conv2d(inputs, 7, 3, padding=1, padding_mode="reflect"),
}
READS = torch.tensor([[1, 1, 0, 0, 1], [0, 1, 1, 0, 0], [0] * 5, [1, 1, 0, 0, 1], [1] * 5, [0, 1, 1, 0, 0], [0] * 5])
SIZES = ((3, 2), (2, 2), (5, 1))


def made(kind: str) -> tuple[nn.Conv2d, nn.Conv2d, BranchedConv2d]:
    """A convolution, the same masked, and in branches, in double precision."""
    torch.manual_seed(0)
    conv = CONVOLUTIONS[kind](5).double()
    masked = CONVOLUTIONS[kind](5).double()
    masked.load_state_dict(conv.state_dict())
    with torch.no_grad():
        masked.weight *= READS[:, :, None, None]
    return conv, masked, branched(conv, READS.bool())


def images() -> Tensor:
    return torch.randn(2, 5, 6, 7, generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_it_is_the_masked_convolution(kind: str) -> None:
    _, masked, layer = made(kind)
    x = images()
    assert layer.sizes == SIZES
    for found, given in ((layer(x), masked(x)), (layer(x[0]), masked(x[0])), (unbranched(layer)(x), masked(x))):
        assert (found - given).abs().max() < 1e-10
    assert torch.equal(layer.weight, masked.weight)
    said = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    assert [getattr(layer, name) for name in said] == [getattr(masked, name) for name in said]
    scale, shift = torch.rand(7).double() + 0.5, torch.randn(7).double()
    expected = masked(x) * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)
    layer.scale_outputs(scale, shift)
    assert (layer(x) - expected).abs().max() < 1e-10
    x.requires_grad_()
    (layer(x).sum() + 0).backward()
    assert all(p.grad is not None for p in layer.parameters()) and x.grad is not None


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_its_macs_are_those_of_its_branches(kind: str) -> None:
    conv, _, layer = made(kind)
    positions = conv(images())[0, 0].numel()
    area = conv.weight[0, 0].numel()
    pairs = sum(inputs * outputs for inputs, outputs in SIZES)
    bias = 0 if conv.bias is None else 7
    assert count_module(layer, images()[:1]) == (positions * area * pairs, area * pairs + bias)


def test_its_edits_rebuild_it_through_json_from_what_it_was_made_of_and_from_itself() -> None:
    _, _, layer = made("strided, with bias")
    net = nn.Sequential(nn.Conv2d(3, 5, 1).double(), layer)
    original = nn.Sequential(nn.Conv2d(3, 6, 1), CONVOLUTIONS["strided, with bias"](6)).double()
    edits = edits_between(original, net)
    assert edits == (ResizeEdit("0", 3, 5), ResizeEdit("1", 5, 7), BranchEdit("1", SIZES))
    again = tuple(map(edit_from_json, json.loads(json.dumps([edit.to_json() for edit in edits]))))
    assert again == edits
    x = torch.randn(2, 3, 6, 7).double()
    for _ in range(2):  # the second time it has its branches already
        apply_edits(original, again)
        original.load_state_dict(net.state_dict())
        assert torch.equal(original(x), net(x))
    assert edits_between(original, net, edits) == edits and not edits_between(original, net)
    for name, value in (("inputs", 5), ("inputs", -1), ("order", 6)):
        state = copy.deepcopy(net.state_dict())
        state[f"1.{name}"][0] = value
        with pytest.raises(RuntimeError, match=f"1.{name} has channels outside of 0 to"):
            original.load_state_dict(state)


@pytest.mark.parametrize(
    "edit",
    [
        BranchEdit("0", ((6, 2),)),
        BranchEdit("0", ((5, 8),)),
        BranchEdit("0", ()),
        BranchEdit("1", ((2, 2),)),
        BranchEdit("x", ((2, 2),)),
    ],
)
def test_edits_that_do_not_fit_are_refused(edit: BranchEdit) -> None:
    with pytest.raises(ValueError, match="does not fit the network"):
        apply_edits(nn.Sequential(nn.Conv2d(5, 7, 1), nn.ReLU()), [edit])


@pytest.mark.parametrize("branches", [[[0, 1]], [[1]], [3], "x", [[True, 1]]])
def test_broken_records_are_refused(branches: object) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        edit_from_json({"kind": "branch", "layer": "0", "branches": branches})
