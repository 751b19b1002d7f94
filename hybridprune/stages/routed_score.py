"""The score by which stage 3 selects an epoch."""

from __future__ import annotations

from collections.abc import Iterable

from hybridprune.data import Batch
from hybridprune.engine.progress import Validation
from hybridprune.engine.threshold import operating_point, threshold_for
from hybridprune.measure.cost import NetworkCost
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.routing.price import TOLERANCE


def routed_score(
    net: GatedNetwork, batches: Iterable[Batch], cost: NetworkCost, reward_scale: float, budget: float | None = None
) -> Validation:
    """The score that selects in stage 3, of the greedy policy: its mean undiscounted return.

    With a ``budget`` (MACs), the network that would be shipped is scored: minus the cross-entropy at the threshold that
    meets the budget (``budget_...`` in the metrics), and minus 10 nats per 100 % that even the nearest threshold misses
    beyond the 2 % that count as met. The price of FLOPs changes while training goes on, so returns cannot be compared.
    """
    own = operating_point(net, batches, cost, 0.0)
    routed = own.evaluation
    metrics = {"accuracy": routed.accuracy, "loss": routed.loss, "flops_share": own.macs / cost.backbone_macs}
    if budget is None:
        saved = sum(share * (1 - rate) for share, rate in zip(cost.block_shares, routed.block_rates, strict=True))
        score = reward_scale * saved - routed.loss
    else:
        point = threshold_for(net, batches, cost, budget, TOLERANCE / 2, own)
        score = -point.evaluation.loss - 10 * max(0.0, abs(point.macs / budget - 1) - TOLERANCE)
        metrics["budget_accuracy"] = point.evaluation.accuracy
        metrics["budget_flops_share"] = point.macs / cost.backbone_macs
    return Validation(score, {"score": score, **metrics})
