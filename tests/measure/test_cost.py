"""MACs and parameters against closed forms, and expected MACs against what executed inference really runs."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from hybridprune.measure.cost import count, module_macs
from hybridprune.models.factored import FactorEdit
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.models.spec import NetworkSpec
from tests.cases import random_decisions, random_images, random_net


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


def test_work_outside_the_known_layers_is_noticed() -> None:
    class Sneaky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            pooled = images.mean((2, 3))
            return self.linear(pooled) @ pooled.new_ones(2, 4)

    with pytest.raises(AssertionError, match="8 MACs lie outside the known layers"):
        module_macs(Sneaky(), 8)
