"""Sizes of the pre-activation ResNets and what their blocks compute."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridprune.errors import UserError
from hybridprune.models.preresnet import PreActivationBlock, PreResNet
from tests.networks_and_images import random_images, randomise


@pytest.mark.parametrize(
    ("depth", "bottleneck", "millions"), [(110, False, 1.73), (164, True, 1.70), (1001, True, 10.33)]
)
def test_published_sizes(depth: int, bottleneck: bool, millions: float) -> None:
    """He et al. 2016b print 1.7 M and 10.2 M; projections instead of zero-padding add a little."""
    with torch.device("meta"):
        params = sum(p.numel() for p in PreResNet(depth, 16, 10, bottleneck).parameters())
    assert params == pytest.approx(millions * 1e6, rel=0.003)


@pytest.mark.parametrize("depth", [8, 14, 26])
@pytest.mark.parametrize("width", [1, 4])
def test_parameter_count_in_closed_form(depth: int, width: int) -> None:
    n, classes, w = (depth - 2) // 6, 7, width
    convolutions = 9 * (2 * n + (2 * n - 0.5) * 4 + (2 * n - 0.5) * 16) + (1 * 2 + 2 * 4)
    # A BN for each convolution's input and one in the head.
    norms = 2 * n + (2 * n - 0.5) * 2 + (2 * n - 0.5) * 4 + 4
    expected = 27 * w + convolutions * w**2 + 2 * norms * w + 4 * w * classes + classes
    assert sum(p.numel() for p in PreResNet(depth, width, classes).parameters()) == expected


@pytest.mark.parametrize(("depth", "bottleneck"), [(18, False), (33, False), (19, True), (2, True), (8, True)])
def test_impossible_depth_is_the_users_mistake(depth: int, bottleneck: bool) -> None:
    layers = r"with --bottleneck has 9n \+ 2" if bottleneck else r"has 6n \+ 2"
    with pytest.raises(UserError, match=rf"--depth {depth}: a preresnet {layers} layers"):
        PreResNet(depth, 4, 10, bottleneck)


@pytest.mark.parametrize(("bottleneck", "factor"), [(False, 1), (True, 4)])
def test_later_stages_halve_the_image_and_double_the_channels(bottleneck: bool, factor: int) -> None:
    net = PreResNet(20, 4, 5, bottleneck).eval()
    per_stage = 2 if bottleneck else 3
    x, shapes = net.stem(random_images(2, size=9)), []
    for block in net.blocks:
        x = block(x)
        shapes.append((x.shape[1], x.shape[2]))
    assert shapes == [(4 * factor, 9)] * per_stage + [(8 * factor, 5)] * per_stage + [(16 * factor, 3)] * per_stage
    assert net.block_channels == [channels for channels, _ in shapes]
    assert torch.equal(net.head(x), net(random_images(2, size=9)))


def norm(module: nn.Module, x: Tensor) -> Tensor:
    """BN in eval mode, then ReLU, by hand."""
    assert isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None
    scale = module.weight / (module.running_var + module.eps).sqrt()
    return ((x - module.running_mean[:, None, None]) * scale[:, None, None] + module.bias[:, None, None]).relu()


@pytest.mark.parametrize(("in_channels", "stride"), [(8, 1), (4, 1), (4, 2)])
@pytest.mark.parametrize("bottleneck", [False, True])
def test_block_in_eval_mode_by_hand(in_channels: int, stride: int, bottleneck: bool) -> None:
    torch.manual_seed(0)
    block = PreActivationBlock(in_channels, 8, stride, bottleneck)
    randomise(block)
    x = torch.randn(2, in_channels, 7, 7)
    convolutions = {name: p for name, p in block.named_parameters() if p.ndim == 4 and "residual" in name}
    assert [p.shape[2] for p in convolutions.values()] == ([1, 3, 1] if bottleneck else [3, 3])
    strided = 2 if bottleneck else 1
    y = x
    for i, weight in enumerate(convolutions.values(), start=1):
        y = F.conv2d(norm(block.residual.get_submodule(f"bn{i}"), y), weight, None, stride if i == strided else 1,
                     weight.shape[2] // 2)  # fmt: skip
    if (in_channels, stride) == (8, 1):
        assert block.projection is None
        shortcut = x
    else:
        assert block.projection is not None
        shortcut = F.conv2d(x, block.projection.weight, stride=stride)
    torch.testing.assert_close(block.skip(x), shortcut)
    assert (block(x) < 0).any(), "a ReLU behind the sum would go unnoticed"
    torch.testing.assert_close(block(x), y + shortcut, rtol=1e-5, atol=1e-5)


def test_the_head_activates_what_the_last_block_left() -> None:
    torch.manual_seed(0)
    net = PreResNet(8, 2, 3)
    randomise(net)
    x = torch.randn(2, 8, 3, 3)
    expected = norm(net.bn, x).mean((2, 3)) @ net.classifier.weight.T + net.classifier.bias
    torch.testing.assert_close(net.head(x), expected)
