"""The budget of stage 3: expected FLOPs that it is given, and that its gates are shifted to meet."""

from __future__ import annotations

from typing import Any

from hybridprune.config import RoutingOptions
from hybridprune.engine.threshold import operating_point, threshold_for
from hybridprune.errors import UserError
from hybridprune.measure.cost import NetworkCost
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.pruning.budget.space import taken_as, target_macs
from hybridprune.routing.price import TOLERANCE, met
from hybridprune.stages.console import say
from hybridprune.stages.images import RunImages


def budget_of(
    options: RoutingOptions,
    cost: NetworkCost,
    dense: int,
    who: str = "skipping blocks reaches",
    others: str = "another --checkpoint_file",
) -> float | None:
    """The MACs that ``--target_flops`` asks for, of ``dense`` MACs, or None if it was not given.

    Raises UserError for a budget that gates cannot reach.
    """
    if options.target_flops is None:
        return None
    budget = target_macs(options.target_flops, dense)
    floor = cost.expected_macs([0.0] * len(cost.block_macs))
    ceiling = cost.expected_macs([1.0] * len(cost.block_macs))
    if not floor <= budget <= ceiling:
        raise UserError(
            f"--target_flops {options.target_flops}: {taken_as({'--target_flops': options.target_flops})}{who} "
            f"{floor / dense:.4f} to {ceiling / dense:.4f} of the dense FLOPs ({2 * floor:,.0f} to "
            f"{2 * ceiling:,.0f}); choose a budget in between, or {others}"
        )
    return budget


def meet_budget(
    net: GatedNetwork, images: RunImages, cost: NetworkCost, budget: float, alpha: float | None
) -> dict[str, Any]:
    """Shift the gates so that the expected FLOPs on validation are the budget's, as far as a threshold can do it.

    Gives what result.json says of it: ``macs`` (the budget), ``validation_macs``, ``met`` and ``threshold``. ``alpha``
    is the price that training ended with, if there was one.
    """
    own = operating_point(net, images.validation(), cost, 0.0)
    if alpha is not None and own.macs < budget and not met(own.macs, budget):
        say(
            f"at the final alpha of {alpha:.4g} the gates spend only {own.macs / budget:.1%} of --target_flops (alpha "
            "can stop charging for FLOPs, not pay for them); a threshold raises that as far as it can"
        )
    point = threshold_for(net, images.validation(), cost, budget, TOLERANCE / 2, own)
    if point.threshold != 0:
        net.gate.shift(-point.threshold)
    reached = met(point.macs, budget)
    if not reached:
        say(
            f"warning: expected FLOPs are {point.macs / budget:.1%} of --target_flops, since the gates hardly tell "
            "images apart; train for more epochs, or with a higher --price_step, --exploration or --rate_bound"
        )
    return {"macs": budget, "validation_macs": point.macs, "met": reached, "threshold": point.threshold}
