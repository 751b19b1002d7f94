"""Gates that learn through straight-through samples: their loss by hand, and what it does to a small net."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from hybridprune.config import RoutingOptions
from hybridprune.data import Batch
from hybridprune.engine.distill import Distillation
from hybridprune.measure.cost import count
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.routing.gumbel import TARGET_WEIGHT, GumbelRouting
from hybridprune.routing.loss import RoutingTerms
from hybridprune.routing.price import Price
from tests.routing.three_gates import SIZE, batch_of, labelled, three_gates


def gumbel(
    net: GatedNetwork, target: float | None = None, distillation: Distillation | None = None, **options: Any
) -> GumbelRouting:
    resolved = RoutingOptions(estimator="gumbel", **options)
    price = Price(resolved.reward_scale, target, resolved.price_step, torch.device("cpu"))
    terms = RoutingTerms.of(count(net, SIZE), resolved, price, torch.device("cpu"), distillation)
    return GumbelRouting(terms, images=500, seed=0)


def share_of(net: GatedNetwork, decisions: torch.Tensor) -> float:
    cost = count(net, SIZE)
    return cost.expected_macs(decisions.mean(0).tolist()) / cost.backbone_macs


@pytest.mark.parametrize("target", [None, 0.7])
def test_the_loss_by_hand_where_noise_changes_nothing(target: float | None) -> None:
    net = three_gates()
    with torch.no_grad():
        for parameter in net.gate.parameters():
            parameter.zero_()
        net.gate.shift(40.0)  # no noise reaches this far
    images, labels = labelled(8)
    loss, metrics = gumbel(net, target, reward_scale=0.5)(net, batch_of(torch.arange(8), images, labels), 0)
    cross_entropy = float(F.cross_entropy(net(images).logits, labels).detach())
    share = share_of(net, torch.ones(8, 3))
    extra = 0.5 * share if target is None else TARGET_WEIGHT * (share - target) ** 2
    assert float(loss.detach()) == pytest.approx(cross_entropy + extra, rel=1e-5)
    assert float(metrics["flops_share"]) == pytest.approx(share, rel=1e-6) and float(metrics["rate"]) == 1


def trained(target: float | None, reward_scale: float, steps: int = 150) -> float:
    """The share of the FLOPs that sampled routes take after some steps on the gates alone."""
    torch.manual_seed(0)
    net = three_gates()
    images, labels = labelled(40)
    batch = batch_of(torch.arange(40), images, labels)
    objective = gumbel(net, target, reward_scale=reward_scale)
    optimizer = torch.optim.SGD(net.gate.parameters(), lr=0.05, momentum=0.9)
    shares = []
    for step in range(steps):
        loss, metrics = objective(net, batch, step)  # other noise each time
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        shares.append(float(metrics["flops_share"]))
    return sum(shares[-20:]) / 20


@pytest.mark.full
def test_a_target_is_reached_and_a_price_is_felt() -> None:
    assert trained(0.75, 0.1) == pytest.approx(0.75, abs=0.04)
    assert trained(0.9, 0.1) == pytest.approx(0.9, abs=0.04)
    floor = share_of(three_gates(), torch.zeros(1, 3))
    assert trained(None, 20.0) == pytest.approx(floor, abs=0.03)
    # Early on, before the routes of this net, whose labels are noise, have all become short.
    shares = [trained(None, alpha, steps=20) for alpha in (0.0, 2.0, 10.0)]
    assert shares[0] > shares[1] + 0.01 and shares[1] > shares[2] + 0.01


def test_the_backbone_learns_from_the_routes_and_the_state_survives() -> None:
    net = three_gates()
    images, labels = labelled(8)
    objective = gumbel(net)
    loss, _ = objective(net, batch_of(torch.arange(8), images, labels), 0)
    loss.backward()
    for part in (net.backbone.classifier, net.gate):
        assert any(p.grad is not None and bool(p.grad.any()) for p in part.parameters())
    other = gumbel(net, reward_scale=3.0)
    other.load_state_dict(objective.state_dict())
    again, _ = other(net, batch_of(torch.arange(8), images, labels), 0)
    assert float(again.detach()) == float(loss.detach())


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("logit", [-1.0, 0.5, 2.0])
def test_samples_execute_as_often_as_the_gates_say(logit: float, temperature: float) -> None:
    """The temperature softens the gradient; what is sampled stays the gate's own probability."""
    net = three_gates()
    with torch.no_grad():
        for parameter in net.gate.parameters():
            parameter.zero_()
        net.gate.shift(logit)
    images, labels = labelled(2)
    batch = Batch(images[:1].expand(500, -1, -1, -1), labels[:1].expand(500), torch.arange(500))
    with torch.no_grad():
        rate = float(gumbel(net, temperature=temperature)(net, batch, 0)[1]["rate"])
    probability = float(torch.tensor(logit).sigmoid())
    assert rate == pytest.approx(probability, abs=4 * (probability * (1 - probability) / 1500) ** 0.5)


def test_distillation_and_rate_bounds_enter_the_loss() -> None:
    net, teacher = three_gates(), three_gates(seed=3)
    batch = batch_of(torch.arange(8), *labelled(8))

    def loss_of(**options: Any) -> float:
        return float(gumbel(net, epochs=4, reward_scale=0.0, **options)(net, batch, 1)[0].detach())

    plain = loss_of()
    assert loss_of() == plain
    taught = {weight: loss_of(distillation=Distillation.of(teacher, weight, 4.0)) for weight in (0.25, 1.0)}
    assert taught[0.25] == pytest.approx(0.75 * plain + 0.25 * taught[1.0], rel=1e-5)
    assert abs(taught[1.0] - plain) > 1e-2
    with torch.no_grad():
        for parameter in net.gate.parameters():
            parameter.zero_()
        net.gate.shift(40.0)
    # In the second of four epochs the bound of 0.4 is down to 0.2, and three gates execute all.
    assert loss_of(rate_bound=0.4, rate_bound_weight=5.0) - loss_of() == pytest.approx(5 * 3 * 0.2**2, abs=1e-5)
