"""Terms that both estimators share."""

from __future__ import annotations

import torch
from torch import Tensor

from hybridprune.config import RoutingOptions
from hybridprune.data import Batch
from hybridprune.engine.distill import Distillation
from hybridprune.measure.cost import NetworkCost
from hybridprune.routing.regular import outside_bounds


def backbone_loss(cross_entropy: Tensor, logits: Tensor, batch: Batch, distillation: Distillation | None) -> Tensor:
    """The mean cross-entropy, part of which gives way to the teacher (0-d)."""
    return cross_entropy if distillation is None else distillation(batch.images, logits, cross_entropy)[0]


def flops_share(decisions: Tensor, block_shares: Tensor, cost: NetworkCost) -> Tensor:
    """Mean FLOPs of decisions ``[B, N]`` as a share of the backbone's, gates counted (0-d)."""
    assert decisions.shape[1:] == block_shares.shape, (decisions.shape, block_shares.shape)
    fixed = (cost.fixed_macs + sum(cost.gate_macs)) / cost.backbone_macs
    return fixed + (decisions.float() @ block_shares).mean()


def gate_bounds(execute: Tensor, options: RoutingOptions, epoch: int) -> Tensor:
    """The penalty for mean execution rates outside of the bounds that hold in this epoch (0-d)."""
    bound = options.rate_bound * max(0.0, 1 - 2 * epoch / options.epochs)
    return options.rate_bound_weight * outside_bounds(execute, bound) if bound > 0 else execute.new_zeros(())


def route_metrics(
    logits: Tensor, batch: Batch, cross_entropy: Tensor, actions: Tensor, share: Tensor
) -> dict[str, Tensor]:
    """What is worth logging of a batch's routes: detached 0-d means."""
    metrics = {
        "cross_entropy": cross_entropy.mean(),
        "accuracy": (logits.argmax(1) == batch.labels).float().mean(),
        "rate": actions.float().mean(),
        "flops_share": share,
    }
    return {name: torch.as_tensor(value).detach() for name, value in metrics.items()}
