"""Separable layers with zero components beside their own compute the same, and ONNX Runtime gets whole blocks."""

from __future__ import annotations

import onnx
import pytest
import torch
from torch import nn

from hybridprune.deployment import deploy
from hybridprune.deployment.agreement import compare
from hybridprune.deployment.onnx import CHANNEL_BLOCK, onnx_bytes, opened
from hybridprune.deployment.padding import pad_components
from hybridprune.models.factored import FactoredConv2d, form
from tests.deployment.networks import preferring


def network() -> nn.Sequential:
    torch.manual_seed(0)
    separable = FactoredConv2d(nn.Conv2d(6, 7, 3, stride=2, padding=1), 5, 5, separable=True)
    two_sided = FactoredConv2d(nn.Conv2d(7, 6, 3), 3, 5)
    whole = FactoredConv2d(nn.Conv2d(6, 4, 3, padding=1, bias=False), 8, 8, separable=True)
    return nn.Sequential(separable, nn.ReLU(), two_sided, whole, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


@torch.no_grad()
def test_zero_components_change_nothing() -> None:
    net, images = network(), torch.randn(3, 6, 12, 12)
    layers = [each for each in net if isinstance(each, FactoredConv2d)]
    first, before = layers[0], net(images)
    parts = [each for each in (first.rotate_in, first.core, first.rotate_out) if isinstance(each, nn.Conv2d)]
    parts[0].bias = nn.Parameter(torch.randn(5))  # a shift in front of the depthwise core, as folding leaves it
    shifted = net(images)
    pad_components(net, 8)
    assert not torch.allclose(before, shifted) and torch.allclose(net(images), shifted, atol=1e-6)
    assert [form(layer).rank_in for layer in layers] == [8, 3, 8]
    assert [(part.in_channels, part.out_channels) for part in parts] == [(6, 8), (8, 8), (8, 7)]
    assert first.core.groups == 8
    pad_components(net, 3)
    assert [form(layer).rank_in for layer in layers] == [9, 3, 9]


@pytest.mark.full
@torch.no_grad()
def test_onnx_models_have_whole_blocks_of_components() -> None:
    images = torch.randn(4, 6, 12, 12)
    deployed = deploy(network(), images, time=preferring("separable")).module
    before = {name: tuple(value.shape) for name, value in deployed.state_dict().items()}
    content = onnx_bytes(deployed, images)
    depthwise = [
        attribute.i
        for node in onnx.load_from_string(content).graph.node
        for attribute in node.attribute
        if node.op_type == "Conv" and attribute.name == "group" and attribute.i > 1
    ]
    assert depthwise == [CHANNEL_BLOCK, CHANNEL_BLOCK]
    assert compare(opened(content), deployed, [images]).difference < 1e-4
    assert {name: tuple(value.shape) for name, value in deployed.state_dict().items()} == before
