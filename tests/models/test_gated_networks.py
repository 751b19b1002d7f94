"""Every network under the gates: masked is executed is plain control flow, at any size; or there are no gates."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hybridprune.models.backbone import Backbone
from hybridprune.models.routed import Mode
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.models.spec import NetworkSpec
from tests.networks_and_images import random_decisions, random_images, randomised

MODES: list[Mode] = ["masked", "executed"]
GATED = {
    "resnet": NetworkSpec("resnet", 14, 4, 5),
    "preresnet": NetworkSpec("preresnet", 14, 4, 5),
    "preresnet, bottleneck": NetworkSpec("preresnet", 20, 3, 5, bottleneck=True),
    "pyramidnet": NetworkSpec("pyramidnet", 14, 4, 5, pyramid_alpha=7),
    "pyramidnet, bottleneck": NetworkSpec("pyramidnet", 20, 3, 5, pyramid_alpha=7, bottleneck=True),
    "pyramidnet, shakedrop": NetworkSpec("pyramidnet", 14, 4, 5, pyramid_alpha=7, shakedrop=0.5),
}
PLAIN = {"vgg": NetworkSpec("vgg", 11, 2, 5), "squeezenet": NetworkSpec("torchvision:squeezenet1_1", 32, 64, 5)}
depths = st.integers(1, 2)
widths = st.integers(1, 5)


@cache
def net_of(spec: NetworkSpec) -> GatedNetwork:
    torch.manual_seed(0)
    return randomised(spec.build())


def image_by_image(net: GatedNetwork, images: torch.Tensor, decisions: torch.Tensor) -> torch.Tensor:
    rows = []
    for image, decided in zip(images.split(1), decisions.tolist(), strict=True):
        x = net.block(0)(net.backbone.stem(image))
        for index, decision in enumerate(decided, start=1):
            block = net.block(index)
            x = block(x) if decision else block.skip(x)
        rows.append(net.backbone.head(x))
    return torch.cat(rows)


@pytest.mark.parametrize("spec", GATED.values(), ids=GATED.keys())
@settings(max_examples=10)
@given(st.integers(1, 5), st.integers(1, 13), st.integers(0, 99))
@torch.no_grad()
def test_masked_executed_and_plain_control_flow_agree(spec: NetworkSpec, batch: int, size: int, seed: int) -> None:
    net = net_of(spec)
    images, decisions = random_images(batch, size, seed), random_decisions(batch, 5, seed)
    expected = image_by_image(net, images, decisions)
    for mode in MODES:
        logits = net(images, decisions, mode).logits
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("spec", GATED.values(), ids=GATED.keys())
@torch.no_grad()
def test_all_skipped_and_all_executed(spec: NetworkSpec) -> None:
    net, images = net_of(spec), random_images(3)
    always = [net(images, torch.ones(3, 5), mode).logits for mode in MODES]
    never = [net(images, torch.zeros(3, 5), mode).logits for mode in MODES]
    assert torch.equal(always[0], net.backbone(images)) and torch.equal(*always)
    assert torch.equal(*never) and not torch.allclose(never[0], always[0], rtol=0.1)
    x = net.block(0)(net.backbone.stem(images))
    for index in range(1, 6):
        x = net.block(index).skip(x)
    assert torch.equal(never[0], net.backbone.head(x))


@pytest.mark.parametrize("spec", GATED.values(), ids=GATED.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_reaches_every_parameter(spec: NetworkSpec, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    net = spec.build().train()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        routed = net(random_images(4), random_decisions(4, 5))
        free = net(random_images(4))
    (routed.logits.float().square().sum() + free.logits.float().square().sum() + free.gate_logits.sum()).backward()
    assert all(p.grad is not None for p in net.parameters())
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        executed = net.eval()(random_images(4), random_decisions(4, 5), "executed").logits
    assert executed.isfinite().all()


@pytest.mark.parametrize("network", ["resnet", "preresnet", "pyramidnet"])
@settings(max_examples=8)
@given(depths, widths, st.booleans(), st.integers(1, 9))
@torch.no_grad()
def test_any_depth_width_and_size(network: str, n: int, width: int, bottleneck: bool, size: int) -> None:
    bottleneck = bottleneck and network != "resnet"
    depth = 2 + n * (9 if bottleneck else 6)
    torch.manual_seed(0)
    net = NetworkSpec(network, depth, width, 3, bottleneck=bottleneck, pyramid_alpha=5).build().eval()
    assert isinstance(net.backbone, Backbone) and net.num_blocks == 3 * n and net.num_gates == 3 * n - 1
    state = net.start(random_images(2, size))
    for channels in net.backbone.block_channels[1:]:
        state = net.advance(state, torch.tensor([1.0, 0.0]), "executed")
        assert state.features.shape[1] == channels
    assert state.features.shape[2] == math.ceil(math.ceil(size / 2) / 2)
    assert net.finish(state).shape == (2, 3)


@pytest.mark.parametrize("spec", PLAIN.values(), ids=PLAIN.keys())
@pytest.mark.parametrize("mode", MODES)
def test_without_blocks_there_are_no_gates(spec: NetworkSpec, mode: Mode) -> None:
    net, images = net_of(spec), random_images(3, 17)
    assert (net.num_blocks, net.num_gates) == (0, 0)
    assert list(net.gate.parameters()) == []
    assert all(name.startswith("backbone.") for name in net.state_dict())
    for decisions in (None, torch.ones(3, 0)):
        routed = net(images, decisions, mode)
        assert torch.equal(routed.logits, net.backbone(images))
        assert routed.decisions.shape == routed.gate_logits.shape == (3, 0)
        assert routed.mean_rate.item() == 1
    with pytest.raises(AssertionError):
        net(images, torch.ones(3, 1), mode)


def test_mean_rate_is_the_mean_decision() -> None:
    net, decisions = net_of(GATED["resnet"]), random_decisions(4, 5)
    assert net(random_images(4), decisions).mean_rate.item() == pytest.approx(decisions.mean().item())


def test_a_users_own_module_is_run_as_it_is() -> None:
    own = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    net = GatedNetwork(own)
    assert net.num_gates == 0 and torch.equal(net(random_images(2)).logits, own(random_images(2)))


@torch.no_grad()
def test_a_single_block_has_no_gate() -> None:
    net = net_of(NetworkSpec("preresnet", 8, 2, 3))
    net.backbone.blocks = net.backbone.blocks[:1]
    single = GatedNetwork(net.backbone)
    single.backbone.bn = nn.Identity()
    single.backbone.classifier = nn.Linear(2, 3)
    assert (single.num_blocks, single.num_gates, list(single.gate.parameters())) == (1, 0, [])
    assert torch.equal(single(random_images(2)).logits, single.backbone(random_images(2)))


@pytest.mark.parametrize("spec", GATED.values(), ids=GATED.keys())
def test_no_strided_pointwise_convolution_runs(spec: NetworkSpec) -> None:
    """Their weight gradients are wrong in oneDNN on AVX2 where they are narrow: pixels are picked before."""
    for name, module in net_of(spec).named_modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1):
            assert module.stride == (1, 1), name


@pytest.mark.parametrize("spec", GATED.values(), ids=GATED.keys())
def test_gradients_of_narrow_networks_are_those_of_double_precision(spec: NetworkSpec) -> None:
    images, labels = random_images(32, 16), torch.arange(32) % 5
    gradients = []
    for dtype in (torch.float64, torch.float32):
        torch.manual_seed(0)
        backbone = randomised(spec.build()).backbone.to(dtype, memory_format=torch.channels_last).eval()
        batch = images.to(dtype, memory_format=torch.channels_last)
        torch.nn.functional.cross_entropy(backbone(batch), labels).backward()
        gradients.append([p.grad.double() for p in backbone.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 10
    for exact, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-3, atol=1e-3 * float(exact.abs().max()) + 1e-9)
