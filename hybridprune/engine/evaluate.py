"""Accuracy, execution rates and expected FLOPs of a gated network on a set of images."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridprune.data import Batch, EvalBatches
from hybridprune.engine.parallel import gather
from hybridprune.measure.cost import NetworkCost
from hybridprune.models.gates import above
from hybridprune.models.skipnet import GatedNetwork, Routed
from hybridprune.precision import full_precision

_CHUNK = 10_000  # images whose logits are held in float64 at once: of a thousand classes there are many

Routing = Literal["always_on", "masked", "executed"]


@dataclass(frozen=True)
class Evaluation:
    """What a network did on M images, in their order, all on the CPU."""

    logits: Tensor
    """``[M, classes]``"""
    decisions: Tensor
    """``[M, N]`` in {0, 1}"""
    labels: Tensor
    """``[M]``"""
    gate_logits: Tensor
    """``[M, N]``"""

    @property
    def accuracy(self) -> float:
        """Share of the images whose highest logit is their label's; an image with a logit that is NaN has none."""
        right = (self.logits.argmax(1) == self.labels) & ~self.logits.isnan().any(1)
        return float(right.double().mean())

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats."""
        parts = zip(self.logits.split(_CHUNK), self.labels.split(_CHUNK), strict=True)
        total = sum(float(F.cross_entropy(logits.double(), labels, reduction="sum")) for logits, labels in parts)
        return total / len(self.labels)

    @property
    def block_rates(self) -> list[float]:
        """Execution rate of each gated block; none without gates."""
        return self.decisions.double().mean(0).tolist()

    def routed_summary(self, cost: NetworkCost) -> dict[str, Any]:
        """Accuracy, loss, expected MACs (gates counted) and execution rates, for ``result.json``."""
        rates = self.block_rates
        return {
            "accuracy": self.accuracy,
            "loss": self.loss,
            "expected_macs": cost.expected_macs(rates),
            "mean_rate": sum(rates) / len(rates) if rates else 1.0,
            "block_rates": rates,
        }


@torch.no_grad()
def evaluate(
    net: GatedNetwork,
    batches: Iterable[Batch],
    routing: Routing,
    decisions: Tensor | None = None,
    threshold: float = 0.0,
) -> Evaluation:
    """Run ``net`` in eval mode and fp32 on all batches; ``decisions [M, N]`` overrule the gates.

    ``always_on`` executes every block; otherwise gates execute where their logit is above ``threshold``.
    """

    def route(batch: Batch, start: int) -> Routed:
        size, device = len(batch.labels), batch.labels.device
        if routing == "always_on":
            forced = torch.ones(size, net.num_gates, device=device)
        else:
            forced = None if decisions is None else decisions[start : start + size].to(device)
        return net(batch.images, forced, "masked" if routing == "masked" else "executed", above(threshold))

    was_training = net.training
    net.eval()
    found = evaluate_routes(route, batches)
    net.train(was_training)
    return found


@torch.no_grad()
@full_precision()
def evaluate_routes(route: Callable[[Batch, int], Routed], batches: Iterable[Batch]) -> Evaluation:
    """What ``route`` makes of all batches; it is given each batch and the place of its first image among all.

    Where several processes share `EvalBatches`, all of them get what all have found.
    """
    share = batches.share if isinstance(batches, EvalBatches) else None
    start = 0 if share is None else share.start
    parts = []
    for batch in batches:
        routed = route(batch, start)
        parts.append([each.cpu() for each in (routed.logits, routed.decisions, batch.labels, routed.gate_logits)])
        start += len(batch.labels)
    found = [torch.cat(each) for each in zip(*parts, strict=True)]
    if share is not None and share.processes > 1:
        found = [gather(each, share.start, share.whole) for each in found]
    return Evaluation(*found)


def summary(net: GatedNetwork, batches: Iterable[Batch], cost: NetworkCost) -> dict[str, Any]:
    """Both readings of a network for ``result.json``: all blocks executed, and routed by its gates."""
    always_on = evaluate(net, batches, "always_on")
    routed = evaluate(net, batches, "executed")
    return {
        "images": len(routed.labels),
        "always_on": {"accuracy": always_on.accuracy, "loss": always_on.loss},
        "routed": routed.routed_summary(cost),
    }
