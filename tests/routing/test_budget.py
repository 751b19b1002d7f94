"""Dual ascent with real policy gradients: gates learn to spend a target, from whichever side they come."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hybridprune.config import RoutingOptions
from hybridprune.data import Batch
from hybridprune.measure.cost import count
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.routing.loss import RoutingTerms
from hybridprune.routing.policy_gradient import PolicyGradient
from hybridprune.routing.price import Price, met
from tests.routing.three_gates import SIZE, batch_of, labelled, three_gates

IMAGES, STEPS, EVERY, STEADY = 32, 150, 5, 3
TARGET = 0.5
"""Halfway between executing nothing and one small block: no route that is the same for all images costs it."""
CHEAP, DEAR = 0.01, 10.0
"""Prices at which gates spend more, and less, than the target."""


def two_kinds(net: GatedNetwork) -> Batch:
    """Images that gates can tell apart: bright ones need the blocks, dark ones are better off without them."""
    bright = torch.arange(IMAGES) % 2
    images = labelled(IMAGES)[0] + (2 * bright - 1).view(-1, 1, 1, 1)
    executed, skipped = (net(images, torch.full((IMAGES, 3), float(all_of))).logits.argmax(1) for all_of in (1, 0))
    return batch_of(torch.arange(IMAGES), images, torch.where(bright == 1, executed, skipped))


def shares_on_the_way(options: dict[str, Any], alpha: float, target: float | None) -> tuple[list[float], Price]:
    """The greedy routes' FLOPs after every few steps, until the target was met some times in a row; and the price."""
    net = three_gates()
    batch = two_kinds(net)
    net.backbone.requires_grad_(False)
    routing = RoutingOptions(train="gates", rl_weight=1.0, reward_scale=alpha, target_flops=target, **options)
    cpu = torch.device("cpu")
    price = Price(alpha, target, 0.3, cpu)
    terms = RoutingTerms.of(count(net, SIZE), routing, price, cpu)
    objective = PolicyGradient(net, terms, images=IMAGES, seed=0)
    optimizer = torch.optim.Adam(net.gate.parameters(), lr=0.05)
    shares: list[float] = []
    for step in range(STEPS):
        loss, _ = objective(net, batch, float(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % EVERY == EVERY - 1:
            with torch.no_grad():
                shares.append(float(terms.flops_share(net(batch.images).decisions)))
            price.validated(shares[-1])
            if target is not None and len(shares) >= STEADY and all(met(share, target) for share in shares[-STEADY:]):
                break
    return shares, price


@pytest.mark.parametrize("alpha", [CHEAP, DEAR], ids=["from above", "from below"])
@pytest.mark.parametrize(
    "options",
    [
        {"baseline": "counterfactual"},
        {"baseline": "counterfactual", "flip_from": "sampled"},
        {"baseline": "self_critical"},
        {"baseline": "moving_average"},
    ],
    ids=lambda options: "-".join(options.values()),
)
def test_the_target_is_reached_and_held(options: dict[str, Any], alpha: float) -> None:
    shares, price = shares_on_the_way(options, alpha, TARGET)
    assert all(met(share, TARGET) for share in shares[-STEADY:]), shares
    assert price.held
    assert float(price.value) > 2 * CHEAP if alpha == CHEAP else float(price.value) < DEAR / 2


@pytest.mark.parametrize("alpha", [CHEAP, DEAR])
def test_without_a_target_the_same_prices_miss_it(alpha: float) -> None:
    shares, price = shares_on_the_way({"baseline": "counterfactual"}, alpha, None)
    assert float(price.value) == alpha
    assert shares[-1] > 1.1 * TARGET if alpha == CHEAP else shares[-1] < 0.9 * TARGET


def test_a_target_that_gates_would_not_spend_for_nothing_is_not_reached() -> None:
    """A price is positive: it falls towards 0, and what is then best is spent."""
    shares, price = shares_on_the_way({"baseline": "counterfactual"}, 0.3, 0.9)
    assert 0 < float(price.value) < 0.01 and not price.held
    assert max(shares[-STEADY:]) < 0.7 * 0.9
