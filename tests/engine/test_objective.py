"""The supervised loss against a computation by hand."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridprune.config import GatingOptions, LossOptions
from hybridprune.data import Batch
from hybridprune.engine.distill import Distillation
from hybridprune.engine.draws import Draws
from hybridprune.engine.objective import Supervised
from hybridprune.measure.cost import NetworkCost, count
from hybridprune.models.gates import Decide, straight_through
from hybridprune.models.routed import Routed
from hybridprune.models.skipnet import GatedNetwork
from tests.networks_and_images import random_images, random_net

COST = NetworkCost(
    start_macs=30,
    shortcut_macs=(0, 10),
    head_macs=10,
    block_macs=(20, 30),
    gate_macs=(1, 1),
    backbone_params=1,
    gate_params=1,
)
BATCH = Batch(torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]), torch.arange(2))


class Fixed(nn.Module):
    """Two images: one right with odds 3 : 1, one wrong with odds 1 : 4; three of four decisions execute."""

    def forward(self, images: Tensor, decide: Decide) -> Routed:
        assert decide is straight_through
        assert images is BATCH.images
        logits = torch.tensor([[math.log(3), 0.0], [math.log(4), 0.0]], requires_grad=True)
        decisions = torch.tensor([[1.0, 1.0], [0.0, 1.0]], requires_grad=True)
        return Routed(logits, torch.zeros(2, 2), decisions)


def test_by_hand() -> None:
    loss, metrics = Supervised.of(COST, 0.5, torch.device("cpu"))(Fixed(), BATCH, passes=0)
    cross_entropy = (math.log(4 / 3) + math.log(5)) / 2
    rate = ((0.2 + 0.3) + 0.3) / 2
    assert loss.item() == pytest.approx(cross_entropy + 0.5 * rate, rel=1e-6)
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(
        {"cross_entropy": cross_entropy, "accuracy": 0.5, "rate": 0.75}, rel=1e-6
    )
    assert loss.requires_grad and not any(value.requires_grad for value in metrics.values())


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_labels_are_smoothed_in_the_loss_alone(share: float) -> None:
    device = torch.device("cpu")
    loss, metrics = Supervised.of(COST, 0.5, device, loss=LossOptions(share))(Fixed(), BATCH, passes=0)
    logits = Fixed()(BATCH.images, straight_through).logits
    smoothed = F.cross_entropy(logits, BATCH.labels, label_smoothing=share)
    assert loss.item() == pytest.approx(smoothed.item() + 0.5 * 0.4, rel=1e-6)
    # By hand: the target of class k is (1 - share) [k is the label] + share / 2.
    right, left = (1 - share / 2), share / 2
    by_hand = (right * math.log(4 / 3) + left * math.log(4) + right * math.log(5) + left * math.log(5 / 4)) / 2
    assert smoothed.item() == pytest.approx(by_hand, rel=1e-6)
    assert metrics["cross_entropy"].item() == pytest.approx((math.log(4 / 3) + math.log(5)) / 2, rel=1e-6)


def test_distillation_gives_way_to_smoothed_labels() -> None:
    net, images, labels = random_net(), random_images(4), torch.tensor([0, 1, 2, 3])
    teaching = Distillation.of(random_net(seed=1), 0.3, 2.0)
    batch, cost = Batch(images, labels, torch.arange(4)), count(net, 8)
    loss, metrics = Supervised.of(cost, 0.0, torch.device("cpu"), teaching, loss=LossOptions(0.2))(net, batch, passes=0)
    smoothed = F.cross_entropy(net(images, decide=straight_through).logits, labels, label_smoothing=0.2)
    assert loss.item() == pytest.approx(0.7 * smoothed.item() + 0.3 * metrics["distillation"].item(), rel=1e-5)


def test_each_decisions_gradient_is_its_blocks_price() -> None:
    captured: list[Tensor] = []

    class Captured(Fixed):
        def forward(self, images: Tensor, decide: Decide) -> Routed:
            routed = super().forward(images, decide)
            captured.append(routed.decisions)
            return routed

    loss, _ = Supervised.of(COST, 0.5, torch.device("cpu"))(Captured(), BATCH, passes=0)
    (gradient,) = torch.autograd.grad(loss, captured)
    torch.testing.assert_close(gradient, torch.tensor([[0.2, 0.3], [0.2, 0.3]]) * 0.5 / 2)


def test_without_penalty_the_gates_learn_from_the_cross_entropy_alone() -> None:
    net = random_net(8).train()
    batch = Batch(random_images(4), torch.tensor([0, 1, 2, 3]), torch.arange(4))
    cost = count(net, 8)
    free, metrics = Supervised.of(cost, 0.0, torch.device("cpu"))(net, batch, 0)
    assert free.item() == metrics["cross_entropy"].item()
    paid, _ = Supervised.of(cost, 2.0, torch.device("cpu"))(net, batch, 0)
    weighted = net(batch.images).decisions.detach() @ torch.tensor(cost.block_shares)
    torch.testing.assert_close((paid - free).detach(), 2 * weighted.mean())


def test_distillation_takes_its_share_from_the_cross_entropy_but_not_from_the_penalty() -> None:
    class Even(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.zeros(2, 2)

    distillation = Distillation.of(Even(), 0.25, 1.0)
    loss, metrics = Supervised.of(COST, 0.5, torch.device("cpu"), distillation)(Fixed(), BATCH, passes=0)
    cross_entropy = (math.log(4 / 3) + math.log(5)) / 2
    # KL of fair odds from odds 3 : 1 and from odds 4 : 1
    divergence = (0.5 * math.log(0.5 / 0.75 * 0.5 / 0.25) + 0.5 * math.log(0.5 / 0.8 * 0.5 / 0.2)) / 2
    rate = ((0.2 + 0.3) + 0.3) / 2
    assert loss.item() == pytest.approx(0.75 * cross_entropy + 0.25 * divergence + 0.5 * rate, rel=1e-6)
    assert metrics["distillation"].item() == pytest.approx(divergence, rel=1e-6)
    assert metrics["cross_entropy"].item() == pytest.approx(cross_entropy, rel=1e-6)
    assert loss.requires_grad and not metrics["distillation"].requires_grad


def test_without_gates_there_is_no_penalty_and_all_is_executed() -> None:
    net = GatedNetwork(nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 5)))
    batch = Batch(random_images(4), torch.tensor([0, 1, 2, 3]), torch.arange(4))
    loss, metrics = Supervised.of(count(net, 8), 3.0, torch.device("cpu"))(net, batch, 0)
    assert loss.item() == pytest.approx(F.cross_entropy(net.backbone(batch.images), batch.labels).item(), rel=1e-6)
    assert metrics["rate"].item() == 1


def test_nothing_to_resume() -> None:
    objective = Supervised.of(COST, 0.5, torch.device("cpu"))
    assert objective.state_dict() == {}
    objective.load_state_dict({})
    assert objective.rate_penalty == 0.5


def test_noise_on_the_gates_makes_samples_of_their_decisions() -> None:
    net = random_net(8).train()
    with torch.no_grad():
        for parameter in net.gate.parameters():
            parameter.zero_()
        net.gate.shift(1.0)
    batch = Batch(random_images(500), torch.arange(500) % 5, torch.arange(500))
    cost = count(net, 8)
    rates = {}
    for noise in (0.0, 1.0):
        draws = Draws(500, net.num_gates, 0, "noise")
        objective = Supervised.of(cost, 0.0, torch.device("cpu"), gating=GatingOptions(gate_noise=noise), draws=draws)
        rates[noise] = objective(copy.deepcopy(net), batch, 0)[1]["rate"].item()
    probability = torch.tensor(1.0).sigmoid().item()
    draws = 500 * net.num_gates
    assert rates[0.0] == 1
    assert rates[1.0] == pytest.approx(probability, abs=4 * (probability * (1 - probability) / draws) ** 0.5)


@pytest.mark.parametrize("gating", ["hard", "soft"])
def test_the_gates_decide_as_they_were_told(gating: str) -> None:
    net = random_net(8).train()
    batch = Batch(random_images(4), torch.tensor([0, 1, 2, 3]), torch.arange(4))
    objective = Supervised.of(count(net, 8), 0.0, torch.device("cpu"), gating=GatingOptions(gating=gating))
    loss, metrics = objective(copy.deepcopy(net), batch, 0)
    routed = net(batch.images, decide=torch.sigmoid if gating == "soft" else None)
    assert loss.item() == pytest.approx(F.cross_entropy(routed.logits, batch.labels).item(), rel=1e-6)
    assert metrics["rate"].item() == pytest.approx(routed.decisions.mean().item(), rel=1e-6)
    fractions = ((routed.decisions > 0) & (routed.decisions < 1)).any()
    assert bool(fractions) == (gating == "soft")
