"""Sizes of the CIFAR ResNets and what their blocks compute."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hybridprune.errors import UserError
from hybridprune.models.resnet import BasicBlock, ResNet
from tests.networks_and_images import random_images


@pytest.mark.parametrize(("width", "params"), [(64, 7_451_044), (16, 472_756)])
def test_published_parameter_counts(width: int, params: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in ResNet(32, width, 100).parameters()) == params


@pytest.mark.parametrize("depth", [8, 14, 20])
@pytest.mark.parametrize("width", [1, 4])
def test_parameter_count_in_closed_form(depth: int, width: int) -> None:
    n, classes = (depth - 2) // 6, 7
    # In units of width^2: 2n convolutions a stage, of which a later stage's first has half the input channels.
    convolutions = 9 * (2 * n + (2 * n - 0.5) * 4 + (2 * n - 0.5) * 16) + (1 * 2 + 2 * 4)
    norms = 1 + 2 * n * (1 + 2 + 4) + (2 + 4)  # channels in units of width: stem, blocks, projections
    expected = 27 * width + convolutions * width**2 + 2 * norms * width + 4 * width * classes + classes
    assert sum(p.numel() for p in ResNet(depth, width, classes).parameters()) == expected


@pytest.mark.parametrize("depth", [2, 7, 18, 33])
def test_impossible_depth_is_the_users_mistake(depth: int) -> None:
    with pytest.raises(UserError, match=rf"--depth {depth}: a CIFAR ResNet has 6n \+ 2 layers"):
        ResNet(depth, 4, 10)


def test_later_stages_halve_the_image_and_double_the_channels() -> None:
    net = ResNet(14, 4, 5).eval()
    x = net.stem(random_images(2, size=16))
    shapes = []
    for block in net.blocks:
        x = block(x)
        shapes.append(tuple(x.shape[1:]))
    assert shapes == [(4, 16, 16), (4, 16, 16), (8, 8, 8), (8, 8, 8), (16, 4, 4), (16, 4, 4)]
    assert net.block_channels == [4, 4, 8, 8, 16, 16]
    assert torch.equal(net.head(x), net(random_images(2, size=16)))


def test_only_blocks_that_change_the_shape_project() -> None:
    blocks = ResNet(14, 4, 5).blocks
    assert [block.projection is not None for block in blocks if isinstance(block, BasicBlock)] == [
        False, False, True, False, True, False,
    ]  # fmt: skip


@pytest.mark.parametrize("stride", [1, 2])
def test_block_in_eval_mode_by_hand(stride: int) -> None:
    torch.manual_seed(0)
    block = BasicBlock(3, 3 * stride, stride).eval()
    x = random_images(2)

    def norm(module: torch.nn.BatchNorm2d, y: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(y, module.running_mean, module.running_var, module.weight, module.bias)

    for module in block.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean is not None
            module.running_mean.normal_()
            torch.nn.init.normal_(module.bias)
    hidden = norm(block.bn1, F.conv2d(x, block.conv1.weight, stride=stride, padding=1)).relu()
    residual = norm(block.bn2, F.conv2d(hidden, block.conv2.weight, padding=1))
    if block.projection is None:
        shortcut = x
    else:
        convolution, bn = block.projection
        assert isinstance(convolution, torch.nn.Conv2d) and isinstance(bn, torch.nn.BatchNorm2d)
        shortcut = norm(bn, F.conv2d(x, convolution.weight, stride=stride))
        assert (shortcut < 0).any(), "a ReLU after the projection would go unnoticed"
    torch.testing.assert_close(block.skip(x), shortcut)
    torch.testing.assert_close(block(x), (residual + shortcut).relu())
