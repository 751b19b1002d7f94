"""Sizes of the PyramidNets, their widening and their shortcuts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hybridprune.errors import UserError
from hybridprune.models.pyramidnet import PyramidBlock, PyramidNet
from hybridprune.models.shakedrop import ShakeDrop
from tests.networks_and_images import random_images, randomise


@pytest.mark.parametrize(
    ("depth", "alpha", "bottleneck", "millions"),
    [(110, 48, False, 1.77), (110, 84, False, 3.9), (110, 270, False, 28.5), (164, 270, True, 27.2),
     (200, 240, True, 26.8), (236, 220, True, 27.0), (272, 200, True, 26.2)],
)  # fmt: skip
def test_published_sizes(depth: int, alpha: int, bottleneck: bool, millions: float) -> None:
    """Han et al. 2017, table 4, as their code counts: 1.7, 3.8, 28.3, 27.0, 26.6, 26.8 and 26.0 million."""
    with torch.device("meta"):
        params = sum(p.numel() for p in PyramidNet(depth, 16, 10, alpha, bottleneck).parameters())
    assert params == pytest.approx(millions * 1e6, rel=0.004)


def test_widening_is_additive() -> None:
    assert PyramidNet(20, 16, 10, pyramid_alpha=9).block_channels == [17, 18, 19, 20, 21, 22, 23, 24, 25]
    # 4.5, 5, 5.5, 6, 6.5, 7, half to even
    assert PyramidNet(14, 4, 10, pyramid_alpha=3).block_channels == [4, 5, 6, 6, 6, 7]
    assert PyramidNet(14, 4, 10, pyramid_alpha=0).block_channels == [4] * 6
    assert PyramidNet(29, 16, 10, pyramid_alpha=18, bottleneck=True).block_channels == [4 * w for w in range(18, 35, 2)]


@pytest.mark.parametrize(("depth", "bottleneck"), [(18, False), (20, False), (20, True), (164, True), (24, True)])
def test_depth(depth: int, bottleneck: bool) -> None:
    if (depth - 2) % (9 if bottleneck else 6):
        with pytest.raises(UserError, match=rf"--depth {depth}: a pyramidnet "):
            PyramidNet(depth, 2, 10, 48, bottleneck)
    else:
        with torch.device("meta"):
            net = PyramidNet(depth, 2, 10, 48, bottleneck)
        # The stem, three or two convolutions a block, and the classifier.
        assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in net.modules()) == depth


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("bottleneck", [False, True])
@pytest.mark.parametrize("size", [7, 8])
def test_block_in_eval_mode_by_hand(stride: int, bottleneck: bool, size: int) -> None:
    torch.manual_seed(0)
    block = PyramidBlock(5, 6, stride, bottleneck, drop=0.25)
    randomise(block)
    x = torch.randn(2, 5, size, size)
    kernels = [3, 3] if not bottleneck else [1, 3, 1]
    strided = kernels.index(3)
    y = x
    for i, kernel in enumerate(kernels):
        y = block.residual.get_submodule(f"bn{i + 1}")(y)
        y = y.relu() if i else y  # no ReLU before the first convolution
        conv = block.residual.get_submodule(f"conv{i + 1}")
        assert isinstance(conv.weight, torch.Tensor) and conv.weight.shape[2:] == (kernel, kernel)
        y = F.conv2d(y, conv.weight, None, stride if i == strided else 1, kernel // 2)
    y = 0.75 * block.residual.get_submodule(f"bn{len(kernels) + 1}")(y)
    pooled = x
    if stride == 2:  # means over 2x2 pixels, over those that exist at an odd border
        pooled = torch.stack(
            [torch.stack([x[:, :, i : i + 2, j : j + 2].mean((2, 3)) for j in range(0, size, 2)], -1)
             for i in range(0, size, 2)], -2,
        )  # fmt: skip
    channels = 24 if bottleneck else 6
    shortcut = torch.cat([pooled, pooled.new_zeros(2, channels - 5, *pooled.shape[2:])], 1)
    assert not list(p for name, p in block.named_parameters() if not name.startswith("residual."))
    torch.testing.assert_close(block.skip(x), shortcut)
    torch.testing.assert_close(block(x), y + shortcut, rtol=1e-5, atol=1e-5)


def test_the_head_activates_what_the_last_block_left() -> None:
    torch.manual_seed(0)
    net = PyramidNet(8, 2, 3, pyramid_alpha=4)
    randomise(net)
    images = random_images(2, 9)
    x = net.stem(images)
    assert (x < 0).any()
    for block in net.blocks:
        x = block(x)
    expected = net.classifier(net.bn2(x).relu().mean((2, 3)))
    assert torch.equal(net(images), expected) and torch.equal(net.head(x), expected)


def test_drop_probability_grows_linearly_with_depth() -> None:
    net = PyramidNet(20, 2, 3, pyramid_alpha=4, shakedrop=0.5)
    drops = [module.drop for module in net.modules() if isinstance(module, ShakeDrop)]
    assert drops == pytest.approx([0.5 * k / 9 for k in range(1, 10)])
    assert not any(isinstance(module, ShakeDrop) for module in PyramidNet(8, 2, 3, pyramid_alpha=4).modules())
