"""What becomes of layers' outputs, in networks that say it in different ways."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridprune.models.resnet import BasicBlock
from hybridprune.pruning.directions.joints import Joint, find_joints
from hybridprune.pruning.directions.tapped_pass import TappedPass
from tests.pruning.random_curvature import source


def run(model: nn.Module, images: Tensor) -> object:
    return model(images)


class Block(nn.Module):
    """A convolution with a norm, and a way to put them together."""

    def __init__(self, way: Callable[[Block, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.other = nn.Conv2d(4, 4, 1)
        self.dropout = nn.Dropout(0.5)
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        return self.way(self, x)


def late(block: Block, x: Tensor) -> Tensor:
    out = block.bn(block.conv(x))
    out += block.other(x)
    return out


def relu_first(block: Block, x: Tensor) -> Tensor:
    return F.relu(block.bn(block.conv(x)), inplace=True) + x


def read_twice(block: Block, x: Tensor) -> Tensor:
    y = block.conv(x)
    return block.bn(y) + x + y.mean()


def norm_read_twice(block: Block, x: Tensor) -> Tensor:
    y = block.bn(block.conv(x))
    return (y + x) * y


JOINTS = {
    "sum of both": (lambda b, x: b.bn(b.conv(x)) + x, Joint("bn", True)),
    "the other way round": (lambda b, x: torch.add(x, b.bn(b.conv(x))), Joint("bn", True)),
    "in place": (lambda b, x: F.relu(b.bn(b.conv(x)).add_(x), inplace=True), Joint("bn", True)),
    "without a norm": (lambda b, x: x + b.conv(x), Joint(None, True)),
    "a constant": (lambda b, x: b.bn(b.conv(x)) + 1.0, Joint("bn")),
    "another shape": (lambda b, x: b.bn(b.conv(x)) + x.mean((2, 3), keepdim=True), Joint("bn")),
    "scaled": (lambda b, x: torch.add(b.bn(b.conv(x)), x, alpha=2), Joint("bn")),
    "no sum": (lambda b, x: F.relu(b.bn(b.conv(x))), Joint("bn")),
    "the other branch comes later": (late, Joint("bn")),
    "not the norm's output": (relu_first, Joint("bn")),
    "another reader": (read_twice, Joint()),
    "another reader behind the norm": (norm_read_twice, Joint("bn")),
    "to itself": (lambda b, x: (y := b.conv(x)) + y, Joint()),
    "dropout at rest": (lambda b, x: x + b.dropout(b.conv(x)), Joint(None, True)),
    "dropout behind the norm": (lambda b, x: x + b.dropout(b.bn(b.conv(x))), Joint("bn", True)),
    "dropout read twice": (lambda b, x: x + (y := b.dropout(b.bn(b.conv(x)))) + y, Joint("bn")),
    "no norm of it alone": (lambda b, x: b.bn(b.conv(x).relu()), Joint()),
}


@pytest.mark.parametrize("name", JOINTS)
def test_a_joint_is_what_the_code_does(name: str) -> None:
    way, expected = JOINTS[name]
    block = Block(way).eval()
    found = find_joints(block, ["conv"], torch.randn(1, 4, 5, 5), run)
    assert found == {"conv": expected}
    assert not any(module._forward_hooks for module in block.modules())


def test_of_two_branches_the_later_one_makes_up() -> None:
    block = Block(late).eval()
    assert find_joints(block, ["conv", "other"], torch.randn(1, 4, 5, 5), run)["other"] == Joint(None, True)
    basic = BasicBlock(4, 8, 2).eval()  # its shortcut runs first
    found = find_joints(basic, ["conv1", "conv2", "projection.0"], torch.randn(1, 4, 6, 6), run)
    assert found == {"conv1": Joint("bn1"), "conv2": Joint("bn2", True), "projection.0": Joint("projection.1")}


@torch.no_grad()
@pytest.mark.parametrize(
    "name", ["sum of both", "the other way round", "in place", "without a norm", "dropout behind the norm"]
)
def test_what_is_tapped_is_what_ran(name: str) -> None:
    way, joint = JOINTS[name]
    block = Block(way).eval()
    x = torch.randn(3, 4, 5, 5, generator=source(1))
    read = TappedPass(block, x, run).input_of("conv", joint)
    written = TappedPass(block, x, run).output_of("conv", joint)
    assert torch.equal(read.value, x) and torch.equal(written.value, block.conv(x))
    for seen in (read, written):
        assert seen.addend is not None and torch.equal(seen.addend, x)
    assert TappedPass(block, x, run).output_of("conv", Joint("bn")).addend is None


def test_features_that_are_not_the_norms_channels_have_no_norm() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(3)).eval()
    assert find_joints(net, ["0"], torch.randn(2, 3, 4), run) == {"0": Joint()}
    flat = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)).eval()
    assert find_joints(flat, ["0"], torch.randn(2, 4), run) == {"0": Joint("1")}
