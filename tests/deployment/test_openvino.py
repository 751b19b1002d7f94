"""OpenVINO runs what ONNX Runtime runs, in fp32, and its makers are told nothing."""

from __future__ import annotations

import sys
from functools import cache

import pytest
import torch
from torch import nn

from hybridprune.deployment import DeployedNetwork, deploy, openvino
from hybridprune.deployment.agreement import compare
from hybridprune.deployment.onnx import onnx_bytes
from hybridprune.errors import UserError
from hybridprune.latency.layer_graph import layer_graph
from tests.deployment.networks import built, preferring
from tests.deployment.test_onnx import SMALL, digits


@cache
@torch.no_grad()
def gated() -> tuple[DeployedNetwork, bytes]:
    """A network with a factored layer and two gated blocks, and its ONNX model, which gathers images.

    Half of the images go through the first of them.
    """
    net, images = built(SMALL), digits(200)
    logits = net(images, mode="executed").gate_logits[:, 0].sort().values
    net.gate.shift(-float(logits[99:101].mean()))
    module = deploy(net, images[:2], time=preferring("two-sided", "gather")).module
    assert isinstance(module, DeployedNetwork)
    return module, onnx_bytes(module, images[:6])


@pytest.mark.full
@torch.no_grad()
def test_gated_blocks_are_the_same_whoever_goes() -> None:
    module, content = gated()
    files = openvino.converted(content, '{"size": "12 × 12", "names": ["<a>", "\\"b\\" & c"]}')
    images = digits(40)
    assert 0 < module.route(images).decisions.mean() < 1
    for run in (openvino.opened(*files), openvino.opened(content)):
        for batch in (1, 7, 40):
            found = compare(run, module, images.split(batch))
            assert found.good and found.images == 40 and found.difference < 1e-4 and not found.classes, found
    about = openvino.core().read_model(*files).get_rt_info("hybridprune").astype(str)
    assert about == '{"size": "12 × 12", "names": ["<a>", "\\"b\\" & c"]}'
    assert len(files[1]) > 4 * sum(p.numel() for p in module.parameters())  # in fp32


def test_it_computes_in_fp32_with_the_threads_of_torch() -> None:
    content = layer_graph(nn.Conv2d(3, 4, 3), torch.randn(2, 3, 8, 8))
    for threads, expected in ((None, torch.get_num_threads()), (1, 1)):
        run = openvino.opened(content, threads=threads)
        compiled = run.args[0].get_compiled_model()  # type: ignore[attr-defined]
        assert compiled.get_property("INFERENCE_NUM_THREADS") == expected
        assert compiled.get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"
        assert compiled.get_property("NUM_STREAMS") == 1


def test_nothing_is_sent() -> None:
    assert openvino.openvino().__name__ == "openvino" and openvino.TELEMETRY not in sys.modules
    with openvino.without_telemetry(), pytest.raises(ImportError):
        import openvino_telemetry  # noqa: F401  # type: ignore[import-not-found]
    assert openvino.TELEMETRY not in sys.modules


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    openvino.need_openvino("--openvino")
    monkeypatch.setattr(openvino, "PACKAGES", ("onnx", "no_such_runtime"))
    with pytest.raises(UserError, match=r"--openvino: needs no_such_runtime; pip install 'hybridprune\[deploy\]'"):
        openvino.need_openvino("--openvino")
