"""What users of exported files see beside the numbers: the name of the batch axis, and no warnings."""

from __future__ import annotations

import onnxruntime
import pytest
import torch

from hybridprune.deployment import deploy
from hybridprune.deployment.onnx import onnx_bytes
from hybridprune.deployment.program import export_program, program_bytes
from tests.deployment.networks import SPECS, built, preferring
from tests.networks_and_images import random_images


@pytest.mark.full
def test_a_network_in_channels_last_is_exported_without_warnings() -> None:
    net = built(SPECS["vgg"]).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = random_images(2, 12).contiguous(memory_format=torch.channels_last)
    module, _ = deploy(net, images, time=preferring("dense"))
    assert program_bytes(export_program(module, images), "{}")
    weight = module.get_submodule("features.conv1_1").get_parameter("weight")
    assert weight.is_contiguous(memory_format=torch.channels_last), "the module itself keeps its format"
    session = onnxruntime.InferenceSession(onnx_bytes(module, images), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", 3, 12, 12] and session.get_outputs()[0].shape == ["batch", 5]
