"""Sizes and shapes of VGG with BN."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hybridprune.errors import UserError
from hybridprune.models.vgg import VGG
from tests.networks_and_images import random_images

CONFIGURATIONS = {
    11: "64 M 128 M 256 256 M 512 512 M 512 512",
    16: "64 64 M 128 128 M 256 256 256 M 512 512 512 M 512 512 512",
    19: "64 64 M 128 128 M 256 256 256 256 M 512 512 512 512 M 512 512 512 512",
}
"""Table 1 of the paper, columns A, D and E, without the last pool."""


@pytest.mark.parametrize("depth", CONFIGURATIONS)
@pytest.mark.parametrize("width", [4, 64])
def test_layers_are_the_papers(depth: int, width: int) -> None:
    with torch.device("meta"):
        net = VGG(depth, width, 10)
    found, expected, channels, params = [], [], 3, 512 * width // 64 * 10 + 10
    for module in net.features:
        assert isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.ReLU | nn.MaxPool2d)
        if isinstance(module, nn.Conv2d):
            found.append(str(module.out_channels))
        elif isinstance(module, nn.MaxPool2d):
            found.append("M")
    for word in CONFIGURATIONS[depth].split():
        if word != "M":
            out = int(word) * width // 64
            params += 9 * channels * out + 2 * out
            channels, word = out, str(out)
        expected.append(word)
    assert found == expected
    assert sum(p.numel() for p in net.parameters()) == params
    if (depth, width) == (16, 64):
        assert params == 14_724_042  # the well-known 14.7 M


@pytest.mark.parametrize("depth", [8, 13, 32])
def test_impossible_depth_is_the_users_mistake(depth: int) -> None:
    with pytest.raises(UserError, match=rf"--depth {depth}: vgg has 11, 16, 19 layers"):
        VGG(depth, 4, 10)


@pytest.mark.parametrize(("size", "last"), [(32, 2), (33, 3), (16, 1), (8, 1), (1, 1)])
def test_any_size_of_image(size: int, last: int) -> None:
    net = VGG(11, 2, 5).eval()
    features = net.features(random_images(2, size))
    assert features.shape == (2, 16, last, last)
    torch.testing.assert_close(net(random_images(2, size)), net.classifier(features.mean((2, 3))))
