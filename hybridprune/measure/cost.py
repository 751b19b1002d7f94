"""Honest accounting: MACs and parameters of a gated network, split into what decisions can and cannot avoid."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hybridprune.models.skipnet import GatedNetwork


@dataclass(frozen=True)
class NetworkCost:
    """Cost of one image. FLOPs are 2 x MACs of convolutions and linear layers, rotations and gates included."""

    fixed_macs: int
    """Backbone work that always runs: stem, block 0, the projections, the classifier."""
    block_macs: tuple[int, ...]
    """Avoidable work of the gated blocks 1..N."""
    gate_macs: tuple[int, ...]
    """Work of the gates 0..N-1."""
    backbone_params: int
    gate_params: int

    @property
    def backbone_macs(self) -> int:
        """All blocks executed, without the gates."""
        return self.fixed_macs + sum(self.block_macs)

    @property
    def block_shares(self) -> tuple[float, ...]:
        """``w``: each gated block's avoidable share of the backbone's MACs."""
        return tuple(macs / self.backbone_macs for macs in self.block_macs)

    def expected_macs(self, rates: Sequence[float]) -> float:
        """Fixed cost, gates, and each gated block's avoidable cost at its execution rate in [0, 1]."""
        assert len(rates) == len(self.block_macs)
        return self.fixed_macs + sum(self.gate_macs) + sum(r * m for r, m in zip(rates, self.block_macs, strict=True))


def module_macs(net: nn.Module, input_size: int) -> dict[str, int]:
    """MACs of one ``[1, 3, input_size, input_size]`` image in each convolution, linear layer and LSTM cell, by name."""
    meta = copy.deepcopy(net).to("meta").eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        meta(torch.empty(1, 3, input_size, input_size, device="meta"))
    counts = counter.get_flop_counts()
    root = type(net).__name__
    leaves = {name for name, module in meta.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear, nn.LSTMCell))}
    macs = {name: sum(counts.get(f"{root}.{name}", {}).values()) // 2 for name in leaves}
    total = counter.get_total_flops() // 2
    assert sum(macs.values()) == total, f"{total - sum(macs.values())} MACs lie outside the known layers"
    return macs


def count(net: GatedNetwork, input_size: int) -> NetworkCost:
    """Count a gated network on the meta device: nothing is computed, so it takes no time."""
    macs = module_macs(net, input_size)
    avoidable = []
    for i in range(1, net.num_gates + 1):
        block = f"backbone.blocks.{i}."
        avoidable.append(
            sum(m for n, m in macs.items() if n.startswith(block) and not n.startswith(block + "projection"))
        )
    shared = sum(m for n, m in macs.items() if n.startswith(("gate.cell", "gate.score"))) // max(net.num_gates, 1)
    gates = tuple(macs[f"gate.embeddings.{i}"] + shared for i in range(net.num_gates))
    backbone = sum(m for n, m in macs.items() if n.startswith("backbone."))
    return NetworkCost(
        fixed_macs=backbone - sum(avoidable),
        block_macs=tuple(avoidable),
        gate_macs=gates,
        backbone_params=sum(p.numel() for p in net.backbone.parameters()),
        gate_params=sum(p.numel() for p in net.gate.parameters()),
    )
