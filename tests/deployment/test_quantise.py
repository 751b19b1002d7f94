"""int8: what is quantised, how well it agrees, and how small it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("onnxruntime")

from hybridprune.deployment.onnx import onnx_bytes, session
from hybridprune.deployment.program import INPUT
from hybridprune.deployment.quantise import quantised


def convolutions() -> tuple[nn.Module, torch.Tensor]:
    """A network of three layers, and images that it can be calibrated on."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.Flatten(), nn.Linear(64 * 36, 10)
    ).eval()
    return net, torch.randn(64, 3, 8, 8)


def assert_nearly_the_same(before: np.ndarray, after: np.ndarray) -> None:
    """Logits in fp32 and in int8."""
    error = float(np.square(before - after).mean() / np.square(before).mean()) ** 0.5
    assert 0 < error < 0.1
    assert float((before.argmax(1) == after.argmax(1)).mean()) > 0.85


def test_a_quantised_network_is_smaller_and_nearly_the_same() -> None:
    import onnx

    net, images = convolutions()
    content = onnx_bytes(net, images)
    small = quantised(content, images.split(16))
    assert len(small) < 0.4 * len(content)
    kinds = [node.op_type for node in onnx.load_from_string(small).graph.node]
    assert kinds.count("Conv") == 2 and "DequantizeLinear" in kinds and "QuantizeLinear" in kinds
    outputs = [np.asarray(session(each).run(None, {INPUT: images.numpy()})[0]) for each in (content, small)]
    assert_nearly_the_same(*outputs)
