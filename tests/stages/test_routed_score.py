"""What selects in stage 3: the return without a budget, the network that would be shipped with one."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from hybridprune.data import Batch
from hybridprune.engine.evaluate import evaluate
from hybridprune.engine.threshold import threshold_for
from hybridprune.measure.cost import count
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.routing.price import TOLERANCE
from hybridprune.stages.routed_score import routed_score
from tests.networks_and_images import batches_of, random_images, random_net

NET = random_net()
COST = count(NET, 8)
LOW, HIGH = (COST.expected_macs([rate] * 5) for rate in (0.0, 1.0))
IMAGES = random_images(200)


def labelled(labels: Tensor | None = None) -> list[Batch]:
    return batches_of(IMAGES, torch.arange(200) % 5 if labels is None else labels, 64)


def shifted(net: GatedNetwork, by: float, sign: int = 1) -> GatedNetwork:
    """A copy with shifted gates, which with ``sign`` -1 prefer what they liked least."""
    net = copy.deepcopy(net)
    with torch.no_grad():
        for layer in net.gate.scores():
            layer.weight.mul_(sign)
    net.gate.shift(by)
    return net


def test_without_a_budget_it_is_the_mean_return() -> None:
    batches = labelled()
    found = routed_score(NET, batches, COST, 0.7)
    routed = evaluate(NET, batches, "executed")
    saved = 1 - (COST.expected_macs(routed.block_rates) - sum(COST.gate_macs)) / COST.backbone_macs
    assert found.score == pytest.approx(0.7 * saved - routed.loss)
    assert found.metrics == pytest.approx(
        {
            "score": found.score,
            "accuracy": routed.accuracy,
            "loss": routed.loss,
            "flops_share": COST.expected_macs(routed.block_rates) / COST.backbone_macs,
        }
    )


@pytest.mark.parametrize("by", [0.0, -60.0, 5.0])
def test_with_a_budget_it_is_the_shipped_networks_loss_whatever_its_own_costs(by: float) -> None:
    net, batches, budget = shifted(NET, by), labelled(), LOW + 0.4 * (HIGH - LOW)
    found = routed_score(net, batches, COST, 0.7, budget)
    own = evaluate(net, batches, "executed")
    net.gate.shift(-threshold_for(net, batches, COST, budget, TOLERANCE / 2).threshold)
    shipped = evaluate(net, batches, "executed")
    assert found.score == pytest.approx(-shipped.loss) != pytest.approx(-own.loss)
    # The price of FLOPs is steered by the policy's own.
    assert found.metrics == pytest.approx(
        {
            "score": found.score,
            "accuracy": own.accuracy,
            "loss": own.loss,
            "flops_share": COST.expected_macs(own.block_rates) / COST.backbone_macs,
            "budget_accuracy": shipped.accuracy,
            "budget_flops_share": COST.expected_macs(shipped.block_rates) / COST.backbone_macs,
        }
    )
    assert found.metrics["budget_flops_share"] * COST.backbone_macs == pytest.approx(budget, rel=TOLERANCE)


def test_a_parent_that_only_a_threshold_takes_to_the_budget_does_not_beat_a_policy_that_learnt_it() -> None:
    """The parent executes all and is right; but what it skips first, to meet the budget, is what is needed most."""
    budget = LOW + 0.4 * (HIGH - LOW)
    learnt = threshold_for(NET, labelled(), COST, budget, TOLERANCE / 2)
    batches = labelled(learnt.evaluation.predictions)
    parent = shifted(NET, 60, sign=-1)
    good, bad = (routed_score(net, batches, COST, 0.0, budget) for net in (NET, parent))
    assert good.metrics["budget_accuracy"] == 1 > bad.metrics["budget_accuracy"]
    assert good.score > bad.score and bad.metrics["flops_share"] == pytest.approx(HIGH / COST.backbone_macs)


@pytest.mark.parametrize("miss", [-0.3, -0.021, -0.019, 0.019, 0.021, 0.3])
def test_missing_a_budget_costs_10_nats_per_100_percent_beyond_the_tolerance(miss: float) -> None:
    """A policy of two operating points; the budget is that of executing nothing, but for ``miss``."""
    net = shifted(NET, 0)
    for layer in net.gate.scores():
        nn.init.zeros_(layer.weight)
        nn.init.constant_(layer.bias, 1.0)
    batches = labelled()
    found = routed_score(net, batches, COST, 0.7, LOW / (1 + miss))
    none = evaluate(net, batches, "executed", torch.zeros(200, 5))
    assert found.metrics["budget_flops_share"] == pytest.approx(LOW / COST.backbone_macs)
    assert found.score == pytest.approx(-none.loss - 10 * max(0.0, abs(miss) - 0.02))
