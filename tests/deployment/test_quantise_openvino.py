"""int8 in OpenVINO: what is quantised, how well it agrees, how small it is, and that gates go on deciding."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hybridprune.deployment.onnx import onnx_bytes
from hybridprune.deployment.openvino import converted, core, opened
from hybridprune.deployment.quantise_openvino import quantised_openvino
from tests.deployment.test_onnx import digits
from tests.deployment.test_openvino import gated
from tests.deployment.test_quantise import assert_nearly_the_same, convolutions


@pytest.mark.full
def test_a_quantised_network_is_smaller_and_nearly_the_same() -> None:
    net, images = convolutions()
    content = onnx_bytes(net, images)
    small = quantised_openvino(content, images.split(16))
    assert sum(map(len, small)) < 0.4 * sum(map(len, converted(content)))
    weights = sum(parameter.numel() for parameter in net.parameters() if parameter.ndim > 1)
    assert weights <= len(small[1]) < 1.1 * weights  # a byte each, and their scales
    kinds = [node.get_type_name() for node in core().read_model(*small).get_ops()]
    assert kinds.count("Convolution") == 2 and kinds.count("FakeQuantize") == 3
    outputs = [opened(*files)(images.numpy())[0] for files in ((content,), small)]
    assert_nearly_the_same(*outputs)


@pytest.mark.full
@torch.no_grad()
def test_gates_decide_whoever_was_calibrated_on() -> None:
    """Also where no image of the calibration goes through a block; the first image of a batch is like the others."""
    module, content = gated()
    images = digits(200)
    skipping = images[module.route(images).decisions[:, 0] == 0]
    assert 16 < len(skipping) < len(images)
    run = opened(*quantised_openvino(content, skipping[:64].split(16)))
    logits, decisions = run(images.numpy())
    assert np.isfinite(logits).all() and set(np.unique(decisions)) == {0, 1}
    alone = [run(images[i : i + 1].numpy()) for i in range(20)]
    assert np.array_equal(np.concatenate([each[1] for each in alone]), decisions[:20])
    np.testing.assert_allclose(np.concatenate([each[0] for each in alone]), logits[:20], rtol=1e-4, atol=1e-4)
    expected = module.route(images, torch.from_numpy(decisions)).logits.numpy()
    error = float(np.square(expected - logits).mean() / np.square(expected).mean()) ** 0.5
    assert 0 < error < 0.1
