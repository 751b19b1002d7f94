"""Gated ResNets for ImageNet against torchvision's: parameters, names, logits, FLOPs, gradients."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.models import resnet as published

from hybridprune.deployment import deploy
from hybridprune.measure.cost import count, count_module
from hybridprune.models import imagenet_resnet
from hybridprune.models.edits import FactorEdit
from hybridprune.models.imagenet_resnet import Bottleneck
from hybridprune.models.published import own_names
from hybridprune.models.resnet import ResNet
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.models.spec import NetworkSpec
from hybridprune.stages.weights import start_from
from tests.deployment.networks import assert_close, preferring
from tests.models.test_gated_networks import MODES, image_by_image
from tests.networks_and_images import random_decisions, random_images, randomise, randomised
from tests.stages.public_networks import CifarResNet

Pair = tuple[GatedNetwork, published.ResNet]


def spec_of(depth: int, edits: tuple[FactorEdit, ...] = ()) -> NetworkSpec:
    return NetworkSpec(f"resnet{depth}-gated", 32, 64, 7, edits)


def torchvisions(depth: int) -> published.ResNet:
    net = models.get_model(f"resnet{depth}", num_classes=7)
    assert isinstance(net, published.ResNet)
    return net


@pytest.mark.parametrize("depth", imagenet_resnet.BLOCKS)
def test_every_parameter_is_one_of_torchvisions(depth: int) -> None:
    with torch.device("meta"):
        net, other = spec_of(depth).build(), torchvisions(depth)
    renamed = own_names(f"resnet{depth}-gated", None, None, other.state_dict()).tensors
    assert {name: t.shape for name, t in renamed.items()} == {n: t.shape for n, t in net.backbone.state_dict().items()}
    assert net.num_gates == sum(len(other.get_submodule(f"layer{stage}")) for stage in (1, 2, 3, 4)) - 1  # type: ignore[arg-type]
    # Strided, their weight gradients are wrong in oneDNN on AVX2 where they are narrow.
    assert all(m.stride == (1, 1) for m in net.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1))


@pytest.fixture(scope="module", params=[18, pytest.param(50, marks=pytest.mark.full)])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A network of torchvision's as if trained, and ours with its weights from a file and new gates."""
    torch.manual_seed(0)
    other = torchvisions(request.param)
    randomise(other)
    path = tmp_path_factory.mktemp("weights") / "net.pth"
    torch.save({name: t for name, t in other.state_dict().items() if "num_batches" not in name}, path)
    net = spec_of(request.param).build().eval()
    start_from(net, spec_of(request.param), path)
    path.unlink()
    return net, other


@torch.no_grad()
def test_with_open_gates_logits_and_flops_are_torchvisions(pair: Pair) -> None:
    net, other = pair
    images = random_images(2, 64)
    expected = other(images)
    for mode in MODES:
        routed = net(images, None, mode)
        assert routed.decisions.all(), "gates start open"
        torch.testing.assert_close(routed.logits, expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))
    cost = count(net, 64)
    assert (cost.backbone_macs, cost.backbone_params) == count_module(other, torch.zeros(1, 3, 64, 64))


@torch.no_grad()
def test_a_skipped_block_is_torchvisions_downsampling_without_relu(pair: Pair) -> None:
    net, other = pair
    index = len(other.layer1)
    x = torch.randn(2, net.backbone.block_channels[index - 1], 7, 7)
    skipped = net.block(index).skip(x)
    torch.testing.assert_close(skipped, other.layer2.get_submodule("0.downsample")(x), rtol=1e-5, atol=1e-4)
    assert (skipped < 0).any() and torch.equal(net.block(index + 1).skip(skipped), skipped)


def test_gradients_of_a_bottleneck_are_torchvisions() -> None:
    torch.manual_seed(0)
    downsample = nn.Sequential(nn.Conv2d(8, 16, 1, 2, bias=False), nn.BatchNorm2d(16))
    other = published.Bottleneck(8, 4, 2, downsample).double()
    block = Bottleneck(8, 16, 2).double()
    block.load_state_dict({name.replace("downsample", "projection"): t for name, t in other.state_dict().items()})
    images = torch.randn(3, 8, 7, 7, dtype=torch.float64)
    towards = torch.randn(3, 16, 4, 4, dtype=torch.float64)
    found, expected = (
        torch.autograd.grad((module(images) * towards).sum(), list(module.parameters())) for module in (block, other)
    )
    theirs = dict(zip((name for name, _ in other.named_parameters()), expected, strict=True))
    for (name, _), gradient in zip(block.named_parameters(), found, strict=True):
        torch.testing.assert_close(gradient, theirs[name.replace("projection", "downsample")])


# --- small ones, of the same parts ---


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five blocks and four channels in the stem, whatever the depth."""
    monkeypatch.setattr(imagenet_resnet, "WIDTH", 4)
    for depth in (18, 50):
        monkeypatch.setitem(imagenet_resnet.BLOCKS, depth, (2, 1, 1, 1))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("depth", [18, 50])
@torch.no_grad()
def test_masked_executed_and_plain_control_flow_agree(depth: int) -> None:
    torch.manual_seed(0)
    spec = spec_of(depth, (FactorEdit("backbone.blocks.1.conv1", 2, 3), FactorEdit("backbone.blocks.2.conv2", 3, 2)))
    net = randomised(spec.build())
    for size in (1, 37):
        images, decisions = random_images(6, size), random_decisions(6, 4, size)
        expected = image_by_image(net, images, decisions)
        for mode in MODES:
            found = net(images, decisions, mode).logits
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    again = NetworkSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert again == spec and spec.label == f"resnet{depth}-gated"
    rebuilt = again.build().eval()
    rebuilt.load_state_dict(net.state_dict())
    assert torch.equal(rebuilt(images).logits, net(images).logits)


@pytest.mark.usefixtures("small")
@torch.no_grad()
def test_a_deployed_one_decides_and_answers_the_same() -> None:
    torch.manual_seed(0)
    edits = (FactorEdit("backbone.conv", None, 3), FactorEdit("backbone.blocks.1.conv2", 3, 2))
    net = randomised(spec_of(50, edits).build())
    images = random_images(6, 24)
    deployed = deploy(net, images, time=preferring("two-sided", "gather"))
    assert {step.action for step in deployed.module.records()[1:]} == {"gather"}  # type: ignore[operator, union-attr]
    expected = net(images, None, "executed")
    assert 0 < float(expected.mean_rate) < 1
    assert_close(deployed.module(images), expected.logits)


# --- checkpoints of something else ---


@pytest.mark.parametrize(
    ("depth", "other", "words"),
    [
        (18, lambda: torchvisions(34), "is of a ResNet-34, not of a ResNet-18; give --network resnet34-gated"),
        (34, lambda: torchvisions(50), "is of a ResNet-50, not of a ResNet-34; give --network resnet50-gated"),
        (50, lambda: spec_of(101).build().backbone, "not of a ResNet-50; give --network resnet101-gated"),
        (18, lambda: ResNet(14, 4, 5), "is of a ResNet-14, not of a ResNet-18; use another checkpoint"),
        (18, lambda: CifarResNet(20, 4, 5), "has 3 stages of blocks, resnet18-gated has 4; use --network resnet"),
    ],
)  # fmt: skip
def test_another_depth_is_named(depth: int, other: Callable[[], nn.Module], words: str) -> None:
    with torch.device("meta"):
        state = other().state_dict()
    with pytest.raises(ValueError, match=f"{words}$"):
        own_names(f"resnet{depth}-gated", None, None, state)
