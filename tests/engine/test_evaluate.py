"""Evaluation of a small network, whatever the batches and the mode."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from hybridprune.data import Batch
from hybridprune.engine import evaluate as evaluation
from hybridprune.engine.evaluate import Evaluation, Readings, Routing
from hybridprune.measure.cost import count
from hybridprune.models.spec import NetworkSpec
from tests.networks_and_images import batches_of, random_decisions, random_images, random_net, randomised

evaluate = partial(evaluation.evaluate, keep_logits=True)
NET = random_net(8)
IMAGES, LABELS = random_images(11), torch.arange(11) % 5


def batches(size: int = 4) -> list[Batch]:
    return batches_of(IMAGES, LABELS, size)


def test_accuracy_and_loss_by_hand() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.0, 0.5]])
    labels = torch.tensor([0, 1, 1, 1])
    decisions = torch.tensor([[1.0, 0], [1, 0], [0, 0], [1, 0]])
    found = Evaluation.of(logits, decisions, labels, decisions)
    assert found.accuracy == 0.75
    expected = -logits.double().softmax(1)[torch.arange(4), labels].log().mean()
    assert found.loss == pytest.approx(expected.item())
    assert found.block_rates == [0.75, 0.0]


def test_what_is_no_number_is_no_answer() -> None:
    logits = torch.tensor([[torch.nan, 0.0], [torch.nan, torch.nan], [1.0, -torch.inf], [0.0, torch.inf]])
    found = Evaluation.of(logits, torch.ones(4, 1), torch.tensor([0, 0, 0, 1]), torch.ones(4, 1))
    assert found.accuracy == 0.5 and math.isnan(found.loss)


@pytest.mark.parametrize("routing", ["always_on", "masked", "executed"])
def test_batches_do_not_matter(routing: Routing) -> None:
    whole, parts = evaluate(NET, batches(11), routing), evaluate(NET, batches(3), routing)
    torch.testing.assert_close(parts.logits, whole.logits, rtol=1e-5, atol=1e-5)
    assert torch.equal(parts.decisions, whole.decisions)
    assert torch.equal(parts.labels, LABELS)


@torch.no_grad()
def test_always_on_is_the_backbone() -> None:
    found = evaluate(NET, batches(11), "always_on")
    assert torch.equal(found.logits, NET.backbone(IMAGES))
    assert found.decisions.shape == (11, 2) and (found.decisions == 1).all()


def test_masked_and_executed_are_one_network() -> None:
    masked, executed = evaluate(NET, batches(), "masked"), evaluate(NET, batches(), "executed")
    torch.testing.assert_close(masked.logits, executed.logits, rtol=1e-5, atol=1e-5)
    assert torch.equal(masked.decisions, executed.decisions) and 0 < executed.decisions.mean() < 1
    assert not torch.allclose(executed.logits, evaluate(NET, batches(), "always_on").logits, rtol=0.01)


@pytest.mark.parametrize("routing", ["masked", "executed"])
@torch.no_grad()
def test_forced_decisions_are_dealt_out_in_the_images_order(routing: Routing) -> None:
    decisions = random_decisions(11, 2)
    found = evaluate(NET, batches(4), routing, decisions)
    assert torch.equal(found.decisions, decisions)
    torch.testing.assert_close(found.logits, NET(IMAGES, decisions).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_uses_the_stored_statistics_and_restores_the_mode(training: bool) -> None:
    net = random_net(8).train(training)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = evaluate(net, batches(), "masked")
    assert net.training == training and net.backbone.bn.training == training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(found.logits, evaluate(NET, batches(), "masked").logits)
    assert not found.logits.requires_grad


def test_summary_gives_both_readings() -> None:
    cost = count(NET, 8)
    found = Readings.of(NET, batches()).summary(cost)
    always_on, routed = evaluate(NET, batches(), "always_on"), evaluate(NET, batches(), "executed")
    assert found["images"] == 11
    assert found["always_on"] == {"accuracy": always_on.accuracy, "loss": always_on.loss}
    decided = routed.decisions.double()
    macs = cost.fixed_macs + sum(cost.gate_macs) + decided @ torch.tensor(cost.block_macs, dtype=torch.float64)
    expected = {
        "accuracy": (routed.logits.argmax(1) == LABELS).double().mean().item(),
        "loss": F.cross_entropy(routed.logits.double(), LABELS).item(),
        "expected_macs": macs.mean().item(),
        "mean_rate": decided.mean().item(),
    }
    rates = found["routed"].pop("block_rates")
    assert rates == decided.mean(0).tolist()
    assert found["routed"] == pytest.approx(expected)


def test_without_gates_all_is_executed() -> None:
    torch.manual_seed(0)
    net = randomised(NetworkSpec("vgg", 11, 2, 5).build())
    cost = count(net, 8)
    found = Readings.of(net, batches()).summary(cost)
    assert found["routed"] == {
        **found["always_on"], "expected_macs": cost.fixed_macs, "mean_rate": 1.0, "block_rates": [],
    }  # fmt: skip
    assert found["always_on"]["accuracy"] == int((net.backbone(IMAGES).argmax(1) == LABELS).sum()) / 11
    assert evaluate(net, batches(), "masked", torch.ones(11, 0)).decisions.shape == (11, 0)


@pytest.mark.parametrize("routing", ["always_on", "masked", "executed"])
def test_logits_are_kept_on_demand_alone(routing: Routing) -> None:
    found, kept = evaluation.evaluate(NET, batches(), routing), evaluate(NET, batches(), routing)
    assert found.kept_logits is None and kept.logits.shape == (11, 5)
    assert torch.equal(found.predictions, kept.logits.argmax(1))
    torch.testing.assert_close(found.cross_entropy, F.cross_entropy(kept.logits.double(), LABELS, reduction="none"))
    assert (found.accuracy, found.loss) == (kept.accuracy, kept.loss)
    with pytest.raises(AssertionError, match="keep_logits"):
        _ = found.logits
