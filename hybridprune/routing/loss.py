"""Terms that both estimators share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hybridprune.config import RoutingOptions
from hybridprune.data import Batch
from hybridprune.engine.distill import Distillation
from hybridprune.engine.objective import avoidable_share
from hybridprune.engine.parallel import batch_mean
from hybridprune.measure.cost import NetworkCost
from hybridprune.precision import FP32, Precision
from hybridprune.routing.price import Price
from hybridprune.routing.regular import outside_bounds


@dataclass(frozen=True)
class RoutingTerms:
    """Terms that both estimators share: the network's cost, the options and the teacher."""

    cost: NetworkCost
    options: RoutingOptions
    price: Price
    block_shares: Tensor
    """``w [N]``"""
    distillation: Distillation | None = None
    precision: Precision = FP32
    """Of the passes that estimators make themselves."""

    @staticmethod
    def of(
        cost: NetworkCost,
        options: RoutingOptions,
        price: Price,
        device: torch.device,
        distillation: Distillation | None = None,
        precision: Precision = FP32,
    ) -> RoutingTerms:
        """The terms for a network of this cost."""
        shares = torch.tensor(cost.block_shares, device=device)
        return RoutingTerms(cost, options, price, shares, distillation, precision)

    def backbone_loss(self, cross_entropy: Tensor, logits: Tensor, batch: Batch) -> Tensor:
        """The mean cross-entropy, part of which gives way to the teacher (0-d)."""
        if self.distillation is None:
            return cross_entropy
        return self.distillation(batch.images, logits, cross_entropy)[0]

    def flops_share(self, decisions: Tensor) -> Tensor:
        """Mean FLOPs of decisions ``[B, N]`` as a share of the backbone's, gates counted (0-d)."""
        fixed = (self.cost.fixed_macs + sum(self.cost.gate_macs)) / self.cost.backbone_macs
        return fixed + avoidable_share(decisions, self.block_shares)


def gate_bounds(execute: Tensor, batch: Batch, options: RoutingOptions, passes: float) -> Tensor:
    """The penalty for mean execution rates outside of ``[b, 1 - b]`` after so many passes (0-d).

    ``b = rate_bound max(0, 1 - 2 passes / epochs)`` shrinks to 0 in the first half of the training. Execution
    probabilities ``execute`` are ``[B, N]``.
    """
    bound = options.rate_bound * max(0.0, 1 - 2 * passes / options.epochs)
    if bound == 0:
        return execute.new_zeros(())
    return options.rate_bound_weight * outside_bounds(batch_mean(execute.mean(0), batch.weight), bound)


def route_metrics(
    logits: Tensor, batch: Batch, cross_entropy: Tensor, actions: Tensor, share: Tensor
) -> dict[str, Tensor]:
    """Metrics of a batch's routes: detached 0-d means."""
    metrics = {
        "cross_entropy": cross_entropy.mean(),
        "accuracy": (logits.argmax(1) == batch.labels).float().mean(),
        "rate": actions.float().mean(),
        "flops_share": share,
    }
    return {name: torch.as_tensor(value).detach() for name, value in metrics.items()}
