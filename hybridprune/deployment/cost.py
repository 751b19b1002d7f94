"""Counting a deployed network as honestly as a trained one: gates, shortcuts, blended blocks in full."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import cast

from torch import Tensor, nn

from hybridprune.deployment.cascade import DeployedCascade, outputs
from hybridprune.deployment.network import DeployedNetwork
from hybridprune.measure.cost import cost_of, count_module, counted, somewhere
from hybridprune.models.backbone import ResidualBlock
from hybridprune.models.gates import Hidden
from hybridprune.models.routed import RoutedNetwork


def expected_macs(module: nn.Module, image: Tensor, rates: Sequence[float]) -> float:
    """MACs of one image ``[1, 3, H, W]`` whose gated blocks or members are executed at ``rates``, gates counted."""
    if isinstance(module, RoutedNetwork):
        return somewhere(module, lambda net: cost_of(net, _beside(net, image))).expected_macs(rates)
    if isinstance(module, DeployedNetwork):
        return somewhere(module, lambda net: _walk(net, _beside(net, image), rates))
    if isinstance(module, DeployedCascade):
        return somewhere(module, lambda net: _members(net, _beside(net, image), rates))
    return count_module(module, image)[0]


def _beside(net: nn.Module, image: Tensor) -> Tensor:
    return image.to(next(net.parameters()).device)


def _members(net: DeployedCascade, image: Tensor, rates: Sequence[float]) -> float:
    """Count each member, and the gate behind it, at the share of the images that come as far."""
    total = 0.0
    features: list[Tensor] = []
    for k, rate in enumerate([1.0, *rates]):
        inputs = features[0] if features else image
        (logits, *features), macs = counted(partial(outputs, net.members[k], inputs))
        total += rate * macs
        if k < net.num_gates:
            total += rate * counted(partial(net.gates[k], logits.float(), None))[1]
    return total


def _walk(net: DeployedNetwork, image: Tensor, rates: Sequence[float]) -> float:
    """Count step by step, as if every block were executed."""
    hidden: Hidden | None = None
    x, macs = counted(lambda: net.backbone.stem(image))
    total = float(macs)
    for i in range(len(net.steps)):
        step = net.step(i)
        if step.gate is not None:
            (_, hidden), macs = counted(partial(step.gate, x, hidden))
            total += macs
        block = cast(ResidualBlock, step.block)
        skipped, macs = counted(partial(block.skip, x))
        total += macs
        if step.action == "skip":
            x = skipped
            continue
        x, macs = counted(partial(block.execute, x, skipped))
        total += macs * (1.0 if step.action in ("run", "blend") else rates[i - 1])
    return total + counted(lambda: net.backbone.head(x))[1]
