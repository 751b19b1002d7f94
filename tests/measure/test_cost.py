"""MACs and parameters against closed forms, and expected MACs against what executed inference really runs."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn
from torchvision import models

from hybridprune.errors import UserError
from hybridprune.measure.cost import count, count_module, module_macs
from hybridprune.models.edits import FactorEdit
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.models.spec import NetworkSpec
from tests.networks_and_images import random_decisions, random_images, random_net, randomised


def resnet_macs(depth: int, width: int, classes: int, size: int) -> tuple[int, list[int]]:
    """Fixed MACs and each gated block's avoidable MACs, from the architecture's definition."""
    fixed, avoidable = 27 * width * size**2, []
    channels, n = width, (depth - 2) // 6
    for stage in range(3):
        for index in range(n):
            out = width * 2**stage
            if stage and not index:
                size = math.ceil(size / 2)
                fixed += channels * out * size**2
            avoidable.append(9 * (channels + out) * out * size**2)
            channels = out
    return fixed + avoidable[0] + channels * classes, avoidable[1:]


def lstm_gate_macs(channels: list[int]) -> list[int]:
    """Embedding to 10, an LSTM cell with 4 gates of inputs 10 and 10, and the score."""
    return [c * 10 + 4 * 10 * (10 + 10) + 10 for c in channels]


@pytest.mark.parametrize(("width", "macs"), [(64, 1_100_700_000), (16, 69_130_496)])
def test_published_macs(width: int, macs: int) -> None:
    cost = count(NetworkSpec("resnet", 32, width, 100).build(), 32)
    assert cost.backbone_macs == pytest.approx(macs, rel=0 if width == 16 else 5e-5)


@pytest.mark.parametrize(("depth", "width", "size"), [(8, 3, 8), (14, 4, 16), (20, 2, 9), (14, 8, 30), (38, 1, 8)])
def test_dense_network_in_closed_form(depth: int, width: int, size: int) -> None:
    net = NetworkSpec("resnet", depth, width, 7).build()
    cost = count(net, size)
    fixed, avoidable = resnet_macs(depth, width, 7, size)
    assert (cost.fixed_macs, list(cost.block_macs)) == (fixed, avoidable)
    assert list(cost.gate_macs) == lstm_gate_macs(net.backbone.block_channels[:-1])
    assert cost.backbone_macs == fixed + sum(avoidable)
    assert cost.block_shares == pytest.approx([macs / cost.backbone_macs for macs in avoidable])


def feed_forward_gate_macs(gate: str, channels: list[int], sizes: list[int]) -> list[int]:
    """Of ten 3x3 filters of stride 2 (ff2), or of ten on pooled features and ten of stride 2 (ff1); of the score."""

    def macs(c: int, size: int) -> int:
        if gate == "ff2":
            return 9 * c * 10 * math.ceil(size / 2) ** 2 + 10
        pooled = size // 2
        return 9 * c * 10 * pooled**2 + 9 * 10 * 10 * math.ceil(pooled / 2) ** 2 + 10

    return list(map(macs, channels, sizes))


@pytest.mark.parametrize(("depth", "width", "size"), [(14, 4, 16), (20, 3, 30), (14, 16, 32), (8, 5, 9)])
@pytest.mark.parametrize("gate", ["ff1", "ff2"])
def test_feed_forward_gates_in_closed_form(gate: str, depth: int, width: int, size: int) -> None:
    cost = count(NetworkSpec("resnet", depth, width, 7, gate=gate).build(), size)
    stages = [(width * 2**stage, math.ceil(size / 2**stage)) for stage in range(3)]
    # A gate sees the output of the block before it; after the last block there is none.
    channels, sizes = (list(of) for of in zip(*sorted(stages * ((depth - 2) // 6))[:-1], strict=True))
    assert list(cost.gate_macs) == feed_forward_gate_macs(gate, channels, sizes)
    assert (cost.fixed_macs, list(cost.block_macs)) == resnet_macs(depth, width, 7, size)
    convolutions = sum(9 * c * 10 + 20 + (9 * 10 * 10 + 20 if gate == "ff1" else 0) for c in channels)
    assert cost.gate_params == convolutions + 11 * len(channels)


def test_gate_parameters_in_closed_form() -> None:
    net = NetworkSpec("resnet", 14, 4, 7).build()
    cost = count(net, 8)
    embeddings = sum(10 * c + 10 for c in (4, 4, 8, 8, 16))
    assert cost.gate_params == embeddings + 4 * (10 * 10 + 10 * 10 + 10 + 10) + 11
    assert cost.backbone_params + cost.gate_params == sum(p.numel() for p in net.parameters())


def test_factored_layers_pay_for_their_rotations() -> None:
    dense, size = count(NetworkSpec("resnet", 14, 4, 7).build(), 16), 16
    edits = (
        FactorEdit("backbone.blocks.1.conv1", 2, 3),  # 4 -> 4 channels at 16x16, two-sided
        FactorEdit("backbone.blocks.2.conv1", 2, None),  # 4 -> 8, stride 2: rotated in at 16x16, core at 8x8
        FactorEdit("backbone.blocks.2.projection.0", 2, None),  # 1x1, stride 2: subsamples first
        FactorEdit("backbone.blocks.5.conv2", None, 5),  # 16 -> 16 at 4x4
    )
    net = NetworkSpec("resnet", 14, 4, 7, edits).build()
    cost = count(net, size)
    block1 = 16**2 * (4 * 2 + 9 * 2 * 3 + 3 * 4) + 16**2 * 9 * 4 * 4
    block2 = 16**2 * 4 * 2 + 8**2 * 9 * 2 * 8 + 8**2 * 9 * 8 * 8
    block5 = 4**2 * 9 * 16 * 16 + 4**2 * (9 * 16 * 5 + 5 * 16)
    assert cost.block_macs == (block1, block2, dense.block_macs[2], dense.block_macs[3], block5)
    assert dense.fixed_macs - cost.fixed_macs == 8**2 * (4 * 8 - (4 * 2 + 2 * 8))
    assert cost.backbone_params == sum(p.numel() for p in net.backbone.parameters()) < dense.backbone_params


@torch.no_grad()
def executed_macs(net: GatedNetwork, decisions: tuple[int, ...], size: int) -> int:
    """MACs that executed inference of one image really runs, seen by hooks on the layers."""
    total = 0

    def add(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.LSTMCell):
            total += module.weight_ih.numel() + module.weight_hh.numel()
        else:
            assert isinstance(module, nn.Conv2d | nn.Linear)
            total += output.numel() * module.weight[0].numel()

    hooks = [m.register_forward_hook(add) for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear | nn.LSTMCell)]
    net(random_images(1, size), torch.tensor([decisions], dtype=torch.float32), "executed")
    for hook in hooks:
        hook.remove()
    return total


@pytest.mark.parametrize("edits", [(), (FactorEdit("backbone.blocks.2.conv1", 2, 3),)], ids=["dense", "factored"])
def test_expected_macs_of_every_decision_vector_are_what_runs(edits: tuple[FactorEdit, ...]) -> None:
    net = random_net(14, 2, 4, edits)
    cost = count(net, 8)
    vectors: list[tuple[int, ...]] = list(itertools.product((0, 1), repeat=5))
    real = {bits: executed_macs(net, bits, 8) for bits in vectors}
    assert {bits: cost.expected_macs(bits) for bits in real} == real
    # Linear in the rates: the expectation over images is the cost at their mean decisions.
    table = random_decisions(20, 5)
    mean = sum(real[tuple(int(a) for a in row)] for row in table) / len(table)
    assert cost.expected_macs(table.double().mean(0).tolist()) == pytest.approx(mean, rel=1e-12)


def test_expected_macs_want_one_rate_a_block() -> None:
    with pytest.raises(AssertionError):
        count(random_net(8), 8).expected_macs([0.5])


def test_counting_leaves_the_network_alone() -> None:
    net = random_net(8).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    count(net, 8)
    assert net.training and all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


# --- other networks ---

OTHERS = {
    "preresnet": NetworkSpec("preresnet", 14, 3, 4),
    "preresnet, bottleneck": NetworkSpec("preresnet", 20, 2, 4, bottleneck=True),
    "preresnet, factored": NetworkSpec("preresnet", 14, 3, 4, (FactorEdit("backbone.blocks.2.projection", 2, None),)),
    "pyramidnet": NetworkSpec("pyramidnet", 14, 3, 4, pyramid_alpha=5, shakedrop=0.5),
    "pyramidnet, bottleneck": NetworkSpec("pyramidnet", 20, 2, 4, pyramid_alpha=5, bottleneck=True),
}


@pytest.mark.parametrize("spec", OTHERS.values(), ids=OTHERS.keys())
@pytest.mark.parametrize("size", [7, 8])
def test_expected_macs_are_what_runs_in_every_gated_network(spec: NetworkSpec, size: int) -> None:
    torch.manual_seed(0)
    net = randomised(spec.build())
    cost = count(net, size)
    rows = random_decisions(8, 5).int().tolist()
    for row in [[0] * 5, [1] * 5, *rows]:
        assert cost.expected_macs(row) == executed_macs(net, tuple(row), size)
    assert cost.backbone_params + cost.gate_params == sum(p.numel() for p in net.parameters())


def test_a_projection_is_not_avoidable() -> None:
    cost = count(NetworkSpec("preresnet", 8, 4, 7).build(), 8)
    assert cost.block_macs == (4**2 * 9 * (4 + 8) * 8, 2**2 * 9 * (8 + 16) * 16)
    stem, block0, projections, head = 8**2 * 27 * 4, 8**2 * 9 * 8 * 4, 4**2 * 4 * 8 + 2**2 * 8 * 16, 16 * 7
    assert cost.fixed_macs == stem + block0 + projections + head


@pytest.mark.parametrize("network", ["vgg", "torchvision:squeezenet1_1"])
def test_without_gates_all_is_fixed(network: str) -> None:
    net = NetworkSpec(network, 11, 4, 7).build()
    cost = count(net, 33)
    assert cost.block_macs == cost.gate_macs == cost.block_shares == () and cost.gate_params == 0
    macs, params = count_module(net.backbone, torch.zeros(1, 3, 33, 33))
    assert cost.expected_macs([]) == cost.backbone_macs == cost.fixed_macs == macs > 0
    assert cost.backbone_params == params


def test_vgg_in_closed_form() -> None:
    net = NetworkSpec("vgg", 16, 64, 10).build()
    per_pixel = [3 * 64 + 64 * 64, 64 * 128 + 128**2, 128 * 256 + 2 * 256**2, 256 * 512 + 2 * 512**2, 3 * 512**2]
    convolutions = sum(9 * weights * (32 >> stage) ** 2 for stage, weights in enumerate(per_pixel))
    assert count(net, 32).fixed_macs == convolutions + 512 * 10


def test_an_impossible_size_is_the_users_mistake() -> None:
    net = NetworkSpec("torchvision:squeezenet1_1", 32, 64, 10).build()
    with pytest.raises(UserError, match=r"--resize 8: the network cannot take images of this size \("):
        count(net, 8)


# --- arbitrary modules ---


@pytest.mark.parametrize(
    ("name", "published"),
    [("mobilenet_v2", 0.301), ("resnet50", 4.089), ("resnext50_32x4d", 4.23), ("vit_b_16", 17.564)],
)
def test_published_macs_of_torchvision(name: str, published: float) -> None:
    """The figures that torchvision prints beside its weights, in units of 10^9."""
    with torch.device("meta"):
        net = models.get_model(name, weights=None)
    macs, params = count_module(net, torch.zeros(1, 3, 224, 224))
    assert round(macs / 1e9, 3) == published
    assert params == next(iter(models.get_model_weights(name))).meta["num_params"]
    by_layer = module_macs(net, 224)
    assert sum(by_layer.values()) == macs
    assert ("other" in by_layer) == (name == "vit_b_16")


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_grouped_convolutions_in_closed_form(groups: int) -> None:
    conv = nn.Conv2d(6, 12, (3, 5), stride=(2, 1), padding=1, groups=groups)
    macs, params = count_module(conv, torch.zeros(1, 6, 9, 8))
    assert macs == 5 * 6 * 12 * (6 // groups) * 15
    assert params == 12 * (6 // groups) * 15 + 12


class Sneaky(nn.Module):
    """A linear layer and a product of matrices outside any layer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pooled = images.mean((2, 3))
        return self.linear(pooled) @ pooled.new_ones(2, 4)


def test_work_outside_the_known_layers_is_counted() -> None:
    assert module_macs(Sneaky(), 8) == {"linear": 6, "other": 8}
    assert count_module(Sneaky(), torch.zeros(1, 3, 8, 8)) == (14, 8)


def test_a_layer_called_other_keeps_its_work() -> None:
    class Odd(Sneaky):
        def __init__(self) -> None:
            super().__init__()
            self.other = nn.Linear(4, 5)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.other(super().forward(images))

    assert module_macs(Odd(), 8) == {"linear": 6, "other": 8 + 20}


def test_a_layer_inside_a_layer_is_counted_once() -> None:
    class LowRank(nn.Linear):
        def __init__(self) -> None:
            super().__init__(192, 4)
            self.down, self.up = nn.Linear(192, 2), nn.Linear(2, 4)

        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input) + self.up(self.down(input))

    total = 192 * 4 + 192 * 2 + 2 * 4
    net = nn.Sequential(nn.Flatten(), LowRank())
    assert module_macs(net, 8) == {"1": total}
    assert count_module(LowRank(), torch.zeros(1, 192)) == (total, sum(p.numel() for p in net.parameters()))


class LooksAtItsData(nn.Module):
    """Branches on a value, which the meta device does not have, and counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        x = self.bn(self.conv(images))
        return x @ x.transpose(2, 3) if float(images.sum()) == 0 else x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_module_that_needs_values_really_runs_and_stays_as_it_was(dtype: torch.dtype) -> None:
    net = LooksAtItsData().to(dtype).train()
    net.bn.eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert module_macs(net, 8) == {"conv": 6 * 6 * 27 * 4, "other": 4 * 6**3}
    assert count_module(net, torch.ones(1, 3, 8, 8, dtype=dtype)) == (6 * 6 * 27 * 4, 27 * 4 + 4 + 8)
    assert (net.training, net.conv.training, net.bn.training) == (True, True, False)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_fused_attention_is_counted_where_a_module_really_runs() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert float(x.sum()) == 0
            return self.attention(x, x, x, need_weights=False)[0]

    length, width = 5, 8
    projections, products = 4 * length * width**2, 2 * length**2 * width
    fast = torch.backends.mha.get_fastpath_enabled()
    assert count_module(Attends(), torch.zeros(1, length, width))[0] == projections + products
    assert torch.backends.mha.get_fastpath_enabled() == fast


def test_errors_of_a_module_come_through() -> None:
    with pytest.raises(RuntimeError, match="channels"):
        count_module(nn.Conv2d(3, 4, 3), torch.zeros(1, 5, 8, 8))
    with pytest.raises(AssertionError, match="a batch of 2"):
        count_module(nn.Conv2d(3, 4, 3), torch.zeros(2, 3, 8, 8))


def test_a_module_without_parameters() -> None:
    assert count_module(nn.Flatten(), torch.zeros(1, 3, 8, 8)) == (0, 0) and module_macs(nn.Flatten(), 8) == {}
