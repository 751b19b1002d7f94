"""Folding: which pairs, seen in a run of any code, and that the function stays the same."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridprune.deployment.fold import fold_inputs, fold_scalings, spell_out_norms
from hybridprune.models.edits import FactorEdit, apply_edits
from tests.networks_and_images import random_images, randomise


class Net(nn.Module):
    """One of each: a pair that folds, and pairs that something keeps from it."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.plain_bn = nn.Conv2d(3, 4, 3, padding=1, groups=1), nn.BatchNorm2d(4)
        self.bare, self.bare_bn = nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False), nn.BatchNorm2d(4, affine=False)
        self.read, self.read_bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.viewed, self.viewed_bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.twice, self.twice_bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.tied, self.tied_bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.other = nn.Conv2d(4, 4, 1)
        self.other.weight = self.tied.weight
        self.early_bn, self.early = nn.BatchNorm2d(4), nn.Conv2d(4, 5, 1, stride=2)
        self.padded_bn, self.padded = nn.BatchNorm2d(5), nn.Conv2d(5, 5, 3, padding=1)
        self.linear, self.linear_bn = nn.Linear(5, 6), nn.BatchNorm1d(6)
        self.last = nn.Linear(6, 3)
        self.returned, self.returned_bn = nn.Linear(3, 3), nn.BatchNorm1d(3)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.plain_bn(self.plain(images)), inplace=True)
        x = self.bare_bn(self.bare(x)).relu()
        read = self.read(x)
        x = self.read_bn(read) + read
        viewed = self.viewed(x)
        x = self.viewed_bn(viewed) + viewed.flatten(1).mean()
        x = self.twice_bn(self.twice(self.twice(x)))
        x = self.other(self.tied_bn(self.tied(x))).relu()
        x = self.early(self.early_bn(x)).relu()
        x = self.padded(self.padded_bn(x)).mean(dim=(2, 3))
        x = self.returned(self.last(self.linear_bn(self.linear(x)).relu()))
        return x, self.returned_bn(x)


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    net = Net().eval()
    for name, value in net.state_dict().items():
        if "_bn." in name and value.ndim:
            value.uniform_(0.5, 1.5)
    return net


@torch.no_grad()
def test_what_nothing_else_reads_is_folded(net: Net) -> None:
    images = random_images(3)
    expected = net(images)
    example = images[:1]
    assert fold_scalings(net, lambda: net(example)) == {
        "plain_bn": "plain",
        "bare_bn": "bare",
        "linear_bn": "linear",
    }
    assert isinstance(net.plain_bn, nn.Identity) and net.bare.bias is not None
    assert fold_inputs(net, lambda: net(example)) == {"early_bn": "early"}
    kept = {name for name, module in net.named_modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)}
    assert kept == {f"{name}_bn" for name in ("read", "viewed", "twice", "tied", "padded", "returned")}
    for found, wanted in zip(net(images), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    spell_out_norms(net)
    assert not any(isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) for module in net.modules())
    for found, wanted in zip(net(images), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_a_norm_that_learns_is_left_alone(net: Net) -> None:
    net.plain_bn.train()
    net.bare_bn = nn.BatchNorm2d(4, track_running_stats=False).eval()
    assert fold_scalings(net, lambda: net(random_images(1, 9))) == {"linear_bn": "linear"}


@torch.no_grad()
def test_a_shift_before_a_rotation_is_folded_though_the_core_pads() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))
    apply_edits(net, (FactorEdit("1", 2, 3),))
    randomise(net)
    before, images = copy.deepcopy(net), random_images(2)
    assert fold_scalings(net, lambda: net(images)) == {"2": "1.rotate_out"}
    assert fold_inputs(net, lambda: net(images)) == {"0": "1.rotate_in"}
    torch.testing.assert_close(net(images), before(images))
