"""The control arm: gates that learn by gradient descent through straight-through samples."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from hybridprune.data import Batch
from hybridprune.engine.draws import Draws
from hybridprune.engine.objective import Pass
from hybridprune.engine.parallel import batch_mean
from hybridprune.models.gates import logistic, straight_through
from hybridprune.routing.loss import RoutingTerms, gate_bounds, route_metrics

TARGET_WEIGHT = 20.0
"""Nats for missing the target by the whole network's FLOPs, squared."""


class GumbelRouting:
    """Cross-entropy of sampled routes + FLOPs, both differentiated straight through the samples (Jang et al. 2017).

    The FLOPs term is ``alpha f`` with the share f of the network's FLOPs that the routes of a batch take or, with a
    target f*, ``20 (f - f*)^2`` (AIG, Veit & Belongie 2018). A gate executes its block where its logit and
    logistic noise add up to more than 0; the gradient is that of the sigmoid of their sum over ``temperature``. The
    noise of an image in an epoch depends on (seed, epoch, image) only.
    """

    def __init__(self, terms: RoutingTerms, *, images: int, seed: int) -> None:
        """``images`` is the size of the image set that batches index into."""
        self._terms = terms
        self._draws = Draws(images, len(terms.block_shares), seed, "gumbel")

    def _decide(self, logit: Tensor) -> Tensor:
        return straight_through(logit / self._terms.options.temperature)

    def __call__(self, forward: Pass, batch: Batch, passes: float) -> tuple[Tensor, dict[str, Tensor]]:
        noise = logistic(self._draws(int(passes), batch.ids))
        routed = forward(batch.images, decide=self._decide, noise=noise)
        cross_entropy = F.cross_entropy(routed.logits.float(), batch.labels, reduction="none")
        price, share = self._terms.price, batch_mean(self._terms.flops_share(routed.decisions), batch.weight)
        loss = self._terms.backbone_loss(cross_entropy.mean(), routed.logits, batch)
        if price.target is None:
            loss = loss + price.value.to(share.dtype) * share
        else:
            loss = loss + TARGET_WEIGHT * (share - price.target).square()
        loss = loss + gate_bounds(routed.gate_logits.sigmoid(), batch, self._terms.options, passes)
        metrics = route_metrics(routed.logits, batch, cross_entropy, routed.decisions, share)
        return loss, metrics

    def state_dict(self) -> dict[str, Any]:
        return {"price": self._terms.price.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._terms.price.load_state_dict(state["price"])
