"""Accuracy, execution rates and expected FLOPs of a network, gated or not, on a set of images."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridprune.data import Batch, EvalBatches
from hybridprune.engine.modes import kept_modes
from hybridprune.engine.parallel import gather
from hybridprune.measure.cost import NetworkCost
from hybridprune.models.gates import above
from hybridprune.models.routed import Routed, RoutedNetwork
from hybridprune.precision import full_precision

Routing = Literal["always_on", "masked", "executed"]


@dataclass(frozen=True)
class Evaluation:
    """Answers of a network on M images, in their order, all on the CPU."""

    predictions: Tensor
    """``[M]``, the classes of the highest logits; -1 where a logit is NaN."""
    cross_entropy: Tensor
    """``[M]`` in nats, float64."""
    decisions: Tensor
    """``[M, N]`` in {0, 1}"""
    labels: Tensor
    """``[M]``"""
    gate_logits: Tensor
    """``[M, N]``"""
    kept_logits: Tensor | None = None
    """``[M, classes]``, if they were asked for: of a thousand classes they are many numbers."""

    @staticmethod
    def of(logits: Tensor, decisions: Tensor, labels: Tensor, gate_logits: Tensor, keep: bool = True) -> Evaluation:
        """The evaluation of logits ``[M, classes]``, which it may ``keep``."""
        losses = F.cross_entropy(logits.double(), labels, reduction="none")
        predictions = torch.where(logits.isnan().any(1), -1, logits.argmax(1))
        return Evaluation(predictions, losses, decisions, labels, gate_logits, logits if keep else None)

    @property
    def logits(self) -> Tensor:
        """``[M, classes]``, where they were kept."""
        assert self.kept_logits is not None, "evaluated without keep_logits"
        return self.kept_logits

    @property
    def accuracy(self) -> float:
        """Share of the images whose prediction is their label."""
        return float((self.predictions == self.labels).double().mean())

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats."""
        return float(self.cross_entropy.mean())

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
    net: nn.Module,
    batches: Iterable[Batch],
    routing: Routing = "executed",
    decisions: Tensor | None = None,
    threshold: float = 0.0,
    keep_logits: bool = False,
) -> Evaluation:
    """Run ``net`` in eval mode and fp32 on all batches; ``decisions [M, N]`` overrule the gates.

    ``always_on`` executes every block; otherwise gates execute where their logit is above ``threshold``. A network
    without gates, of which any module that gives logits is one, has nothing to decide.
    """

    def route(batch: Batch, start: int) -> Routed:
        if not isinstance(net, RoutedNetwork):
            logits = net(batch.images)
            return Routed(logits, logits[:, :0], logits[:, :0])
        size, device = len(batch.labels), batch.labels.device
        if routing == "always_on":
            forced = torch.ones(size, net.num_gates, device=device)
        else:
            forced = None if decisions is None else decisions[start : start + size].to(device)
        return net(batch.images, forced, "masked" if routing == "masked" else "executed", above(threshold))

    with kept_modes(net):
        net.eval()
        return evaluate_routes(route, batches, keep_logits)


@torch.no_grad()
@full_precision()
def evaluate_routes(
    route: Callable[[Batch, int], Routed], batches: Iterable[Batch], keep_logits: bool = False
) -> Evaluation:
    """The evaluation of ``route`` on all batches; it is given each batch and the place of its first image among all.

    Where several processes share `EvalBatches`, all of them get what all have found.
    """
    share = batches.share if isinstance(batches, EvalBatches) else None
    start = 0 if share is None else share.start
    parts: list[list[Tensor]] = []
    for batch in batches:
        routed = route(batch, start)
        on_cpu = (each.cpu() for each in (routed.logits, routed.decisions, batch.labels, routed.gate_logits))
        part = Evaluation.of(*on_cpu, keep=keep_logits)
        parts.append([value for value in vars(part).values() if value is not None])
        start += len(batch.labels)
    found = [torch.cat(each) for each in zip(*parts, strict=True)]
    if share is not None and share.processes > 1:
        found = [gather(each, share.start, share.whole) for each in found]
    return Evaluation(*found)


@dataclass(frozen=True)
class Readings:
    """Both readings of a network: all blocks or members executed, and routed by its gates."""

    always_on: Evaluation
    routed: Evaluation

    @staticmethod
    def of(net: RoutedNetwork, batches: Iterable[Batch], keep_logits: bool = False) -> Readings:
        """Both readings of all batches; the logits of ``always_on`` may be kept."""
        return Readings(evaluate(net, batches, "always_on", keep_logits=keep_logits), evaluate(net, batches))

    def summary(self, cost: NetworkCost) -> dict[str, Any]:
        """The figures for ``result.json``."""
        return {
            "images": len(self.routed.labels),
            "always_on": {"accuracy": self.always_on.accuracy, "loss": self.always_on.loss},
            "routed": self.routed.routed_summary(cost),
        }
