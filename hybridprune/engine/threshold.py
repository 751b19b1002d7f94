"""Operating points of one trained policy: thresholds on the gates' logits, chosen on validation images."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from hybridprune.data import Batch
from hybridprune.engine.evaluate import Evaluation, evaluate
from hybridprune.measure.cost import NetworkCost
from hybridprune.models.routed import RoutedNetwork

STEPS = 16


@dataclass(frozen=True)
class OperatingPoint:
    """The figures of one threshold on some images."""

    threshold: float
    """On the logits: a block is executed where its gate's logit is above it. -inf executes all, inf none."""
    macs: float
    """Expected MACs of one image, gates counted."""
    evaluation: Evaluation

    @property
    def neighbours(self) -> tuple[float, float]:
        """The largest logit that skips and the smallest that executes, -inf and inf where there is none.

        All thresholds in ``[neighbours)`` make the same decisions: those before a gate are the same, so its logits are.
        """
        logits = self.evaluation.gate_logits
        executed = logits > self.threshold
        skipping, executing = logits[~executed], logits[executed]
        return (
            float(skipping.max()) if skipping.numel() else -math.inf,
            float(executing.min()) if executing.numel() else math.inf,
        )

    def proposal(self, cost: NetworkCost, target_macs: float) -> float:
        """The threshold at which the logits seen here would come nearest to ``target_macs``.

        It is finite and keeps away from all of them. What the other decisions do to the logits is left out.
        """
        logits = self.evaluation.gate_logits
        work = torch.tensor(cost.block_macs, dtype=torch.float64).expand(logits.shape) / len(logits)
        values, which = logits.flatten().unique(return_inverse=True)  # rising
        of_value = torch.zeros(len(values), dtype=torch.float64).index_add(0, which, work.flatten())
        # Entry k: the first k values skip.
        saved = torch.cat([torch.zeros(1, dtype=torch.float64), of_value.cumsum(0)])
        most = cost.expected_macs([1.0] * len(cost.block_macs))
        skipping = int((most - saved - target_macs).abs().argmin())
        limits = [-math.inf, *values.tolist(), math.inf]
        return _midway(limits[skipping], limits[skipping + 1])


def operating_point(
    net: RoutedNetwork, batches: Iterable[Batch], cost: NetworkCost, threshold: float
) -> OperatingPoint:
    """Route the batches with this threshold."""
    found = evaluate(net, batches, "executed", threshold=threshold)
    return OperatingPoint(threshold, cost.expected_macs(found.block_rates), found)


def threshold_for(
    net: RoutedNetwork,
    batches: Iterable[Batch],
    cost: NetworkCost,
    target_macs: float,
    tolerance: float,
    own: OperatingPoint | None = None,
) -> OperatingPoint:
    """The operating point nearest to ``target_macs``: the first that is within ``tolerance`` (relative), if one is.

    0 is tried first (``own`` is what it gives, if that is known): a policy that meets the target as it is stays as it
    is. Any other threshold is finite and midway between two logits, so that noise of arithmetic flips no decision.
    Costs fall with the threshold but for what changed features do to later gates. A policy that treats all images
    alike has few operating points, so the nearest may be far off: the caller sees ``macs``.
    """
    point = own or operating_point(net, batches, cost, 0.0)
    points = [point]
    # Those that may still be better are in [low, high): dearer ones end at low, cheaper ones begin at high.
    low, high = -math.inf, math.inf
    while (miss := abs(point.macs / target_macs - 1)) > tolerance and len(points) < STEPS:
        skips, executes = point.neighbours
        low, high = (executes, high) if point.macs > target_macs else (low, skips)
        if low >= high:
            break
        threshold = point.proposal(cost, target_macs)
        slow = len(points) > 1 and miss > abs(points[-2].macs / target_macs - 1) / 2
        if slow or not low <= threshold < high:
            threshold = _midway(low, high)
        point = operating_point(net, batches, cost, threshold)
        points.append(point)
    best = min(points, key=lambda point: abs(point.macs - target_macs))
    return best if best.threshold == 0 else dataclasses.replace(best, threshold=_midway(*best.neighbours))


def _midway(low: float, high: float) -> float:
    """A finite fp32 number in the middle of ``[low, high)``, or well beyond the one that is finite."""
    if low == -math.inf:
        return high - 1 - abs(high)
    if high == math.inf:
        return low + 1 + abs(low)
    middle = float(torch.tensor((low + high) / 2, dtype=torch.float32))
    return middle if middle < high else low
