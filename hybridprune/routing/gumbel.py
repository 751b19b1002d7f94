"""The control arm: gates that learn by gradient descent through straight-through samples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hybridprune.config import RoutingOptions
from hybridprune.data import Batch
from hybridprune.engine.distill import Distillation
from hybridprune.measure.cost import NetworkCost
from hybridprune.models.gates import straight_through, with_noise
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.routing.loss import backbone_loss, flops_share, gate_bounds, route_metrics
from hybridprune.routing.price import Price

TARGET_WEIGHT = 20.0
"""Nats for missing the target by the whole network's FLOPs, squared."""


class GumbelRouting:
    """Cross-entropy of sampled routes + FLOPs, both differentiated straight through the samples (Jang et al. 2017).

    The FLOPs term is ``alpha`` x the share of the network's FLOPs or, with a target, the squared distance from it
    (AIG, Veit & Belongie 2018). Noise comes from torch's global stream, which a resume restores.
    """

    def __init__(
        self,
        net: GatedNetwork,
        cost: NetworkCost,
        options: RoutingOptions,
        *,
        price: Price,
        device: torch.device,
        distillation: Distillation | None = None,
    ) -> None:
        self._net = net
        self._cost = cost
        self._options = options
        self._price = price
        self._distillation = distillation
        self._shares = torch.tensor(cost.block_shares, device=device)
        self._decide = with_noise(lambda logit: straight_through(logit / options.temperature), 1.0)

    def __call__(self, forward: nn.Module, batch: Batch, epoch: int) -> tuple[Tensor, dict[str, Tensor]]:
        routed = forward(batch.images, decide=self._decide)
        cross_entropy = nn.functional.cross_entropy(routed.logits.float(), batch.labels, reduction="none")
        share = flops_share(routed.decisions, self._shares, self._cost)
        loss = backbone_loss(cross_entropy.mean(), routed.logits, batch, self._distillation)
        if self._price.target is None:
            loss = loss + self._price.value * share
        else:
            loss = loss + TARGET_WEIGHT * (share - self._price.target).square()
        loss = loss + gate_bounds(routed.gate_logits.sigmoid(), self._options, epoch)
        metrics = route_metrics(routed.logits, batch, cross_entropy, routed.decisions, share)
        return loss, metrics

    def state_dict(self) -> dict[str, Any]:
        return {"price": self._price.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._price.load_state_dict(state["price"])
