"""Stage 3's objectives in two processes: the gradients, averages and prices of one that sees the whole batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hybridprune.config import RoutingOptions
from hybridprune.data import Batch, EvalBatches, LabelledImages, Share, TrainBatches
from hybridprune.engine.distill import Distillation
from hybridprune.engine.objective import Objective
from hybridprune.engine.parallel import average_gradients
from hybridprune.measure.cost import count
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.processes import count as processes
from hybridprune.processes import rank
from hybridprune.routing.gumbel import GumbelRouting
from hybridprune.routing.loss import RoutingTerms
from hybridprune.routing.policy_gradient import PolicyGradient
from hybridprune.routing.price import Price
from hybridprune.routing.subset import start_from_subset
from tests.process_groups import together
from tests.routing.three_gates import SIZE, labelled, three_gates

BATCH, STEPS = 9, 4
COMMON: dict[str, Any] = {
    "rl_warmup": 0.0, "rl_weight": 1.0, "rate_bound": 0.45, "entropy_bonus": 0.1, "price_step": 1.0,
}  # fmt: skip
OPTIONS: list[dict[str, Any]] = [
    *({"baseline": name} for name in ("none", "moving_average", "self_critical", "counterfactual")),
    {"baseline": "counterfactual", "flip_from": "sampled"},
    {"estimator": "gumbel"},
]


def objective(net: GatedNetwork, options: RoutingOptions) -> Objective:
    price = Price(0.5, 0.6, options.price_step, torch.device("cpu"))
    distillation = Distillation.of(three_gates(1), 0.3, 2.0)
    terms = RoutingTerms.of(count(net, SIZE), options, price, torch.device("cpu"), distillation)
    if options.estimator == "gumbel":
        return GumbelRouting(terms, images=BATCH * STEPS, seed=0)
    return PolicyGradient(net, terms, images=BATCH * STEPS, seed=0)


def trained(options: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and the objective's state after some steps, each on this process's share of nine images."""
    net = three_gates()
    learning = objective(net, RoutingOptions(**COMMON, **options))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    images, labels = labelled(BATCH * STEPS)
    for step in range(STEPS):
        share = Share.of(BATCH, rank(), processes())
        ids = torch.arange(BATCH)[share.start : share.stop] + step * BATCH
        batch = Batch(images[ids], labels[ids], ids, share)
        loss, _ = learning(net, batch, step / STEPS)
        optimizer.zero_grad()
        (loss * batch.weight).backward()
        average_gradients(net.parameters())
        optimizer.step()
    return net.state_dict(), learning.state_dict()


def subset() -> list[Any]:
    """What gates start from."""
    net, (images, labels) = three_gates(), labelled(20)
    data = LabelledImages((images * 40 + 128).clamp(0, 255).to(torch.uint8), labels)
    common: dict[str, Any] = {
        "mean": (0.5,) * 3, "std": (0.25,) * 3, "device": "cpu", "channels_last": False,
        "rank": rank(), "processes": processes(),
    }  # fmt: skip
    search = EvalBatches(data, None, batch_size=7, **common)
    training = TrainBatches(data, torch.arange(20), batch_size=5, crop=True, flip=True, seed=0, **common)
    cost = count(net, SIZE)
    found = start_from_subset(net, cost, 0.75 * cost.backbone_macs, search, training)
    return [found.route, found.worth, net.gate.state_dict()]


def both(folder: Path, command: Callable[[], Any]) -> tuple[Any, Any]:
    ended = together(folder, command)
    assert [each[0] for each in ended] == [0, 0], ended[0][3] + ended[1][3]
    return ended[0][1], ended[1][1]


@pytest.mark.full
def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    first, second = both(tmp_path, lambda: [trained(options) for options in OPTIONS])
    for options, one, other in zip(OPTIONS, first, second, strict=True):
        weights, state = trained(options)
        torch.testing.assert_close(one[0], weights, rtol=1e-4, atol=1e-6, msg=lambda text, o=options: f"{o}: {text}")
        assert_close_states(one[1], state)
        assert all(torch.equal(value, other[0][name]) for name, value in one[0].items()), options
        start = three_gates().state_dict()
        assert any(not torch.equal(start[name], value) for name, value in weights.items())


def assert_close_states(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one["price"] == pytest.approx(other["price"], rel=1e-5)
    assert one.keys() == other.keys()
    for name in one.keys() - {"price"}:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-6)


@pytest.mark.full
def test_two_processes_find_and_teach_the_same_subset(tmp_path: Path) -> None:
    first, second = both(tmp_path, subset)
    torch.testing.assert_close(first, subset(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(second, first, rtol=0, atol=0)
