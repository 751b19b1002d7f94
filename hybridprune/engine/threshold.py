"""Operating points of one trained policy: thresholds on the gates' logits, chosen on validation images."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hybridprune.data import Batch
from hybridprune.engine.evaluate import Evaluation, evaluate
from hybridprune.measure.cost import NetworkCost
from hybridprune.models.skipnet import GatedNetwork

WIDEST = 32.0
"""Logits further from 0 than this are not distinguished: their probabilities are 0 and 1 in fp32."""
STEPS = 16


@dataclass(frozen=True)
class OperatingPoint:
    """What a threshold gives on some images."""

    threshold: float
    """On the logits: a block is executed where its gate's logit is above it."""
    macs: float
    """Expected MACs of one image, gates counted."""
    evaluation: Evaluation


def operating_point(net: GatedNetwork, batches: Iterable[Batch], cost: NetworkCost, threshold: float) -> OperatingPoint:
    """Route the batches with this threshold."""
    found = evaluate(net, batches, "executed", threshold=threshold)
    return OperatingPoint(threshold, cost.expected_macs(found.block_rates), found)


def threshold_for(
    net: GatedNetwork, batches: Iterable[Batch], cost: NetworkCost, target_macs: float, tolerance: float
) -> OperatingPoint:
    """The operating point nearest to ``target_macs``, by bisection until it is within ``tolerance`` (relative).

    0 is tried first: a policy that meets the target as it is stays as it is. Costs fall with the threshold but for
    what changed features do to later gates. A policy that treats all images alike has few operating points, so the
    nearest may be far off: the caller sees ``macs``.
    """
    points = [operating_point(net, batches, cost, 0.0)]
    low, high = -WIDEST, WIDEST
    threshold = 0.0
    while abs(points[-1].macs / target_macs - 1) > tolerance and len(points) < STEPS:
        if points[-1].macs > target_macs:
            low = threshold
        else:
            high = threshold
        threshold = (low + high) / 2
        points.append(operating_point(net, batches, cost, threshold))
    return min(points, key=lambda point: abs(point.macs - target_macs))
