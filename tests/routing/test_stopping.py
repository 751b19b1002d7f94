"""When to stop in a cascade: against enumeration, sampling, and rollouts through the members themselves."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hybridprune.measure.cost import NetworkCost, count
from hybridprune.models.cascade import Cascade
from hybridprune.models.confidence import ConfidenceGate
from hybridprune.routing.policy_gradient import policy_loss
from hybridprune.routing.rollout import Choose, choose_by, choose_greedily, rollout
from hybridprune.routing.stopping import (
    StoppingTable,
    expected_return,
    mean_macs_at,
    nearest,
    rates_by_threshold,
    stop_log_probs,
    stop_macs,
    threshold_at,
    train_gates,
)
from tests.models.test_cascade import CLASSES, cascade, images


def table_of(net: Cascade, x: Tensor, labels: Tensor) -> StoppingTable:
    with torch.no_grad():
        logits = torch.stack([member(x) for member in net.members])
        return StoppingTable(net.answers(logits), labels, stop_macs(count(net, 6)))


def random_table(members: int, count: int, seed: int = 0) -> StoppingTable:
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=draw)
    right = F.one_hot(labels, CLASSES).float()
    answers = torch.stack([(1 + k) * right + torch.randn(count, CLASSES, generator=draw) for k in range(members)])
    return StoppingTable(answers, labels, torch.arange(1, members + 1, dtype=torch.float64).square() * 100)


@given(st.integers(1, 4), st.integers(0, 99))
def test_the_probabilities_of_stopping_are_products_and_add_up_to_one(gates: int, seed: int) -> None:
    logits = 3 * torch.randn(5, gates, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    goes = logits.sigmoid()
    found = stop_log_probs(logits).exp()
    assert found.shape == (5, gates + 1)
    for row, p in zip(found.tolist(), goes.tolist(), strict=True):
        wanted = [math.prod(p[:k]) * (1 - p[k]) for k in range(gates)] + [math.prod(p)]
        assert row == pytest.approx(wanted)
    torch.testing.assert_close(found.sum(1), torch.ones(5, dtype=torch.float64))


def test_without_gates_all_images_stop_behind_the_only_member() -> None:
    assert stop_log_probs(torch.empty(3, 0)).tolist() == [[0.0]] * 3


def test_the_table_is_what_the_cascade_does_and_spends() -> None:
    net, x = cascade(), images(40)
    labels = torch.arange(40) % CLASSES
    table = table_of(net, x, labels)
    with torch.no_grad():
        logits = table.gate_logits(net.gate)
        done = rollout(net, count(net, 6), x, labels, choose_greedily)
    stops = table.stops(logits)
    assert len(stops.unique()) == 3
    each = torch.arange(40)
    torch.testing.assert_close(table.answers[stops, each], done.logits)
    torch.testing.assert_close(table.cross_entropy[each, stops], done.cross_entropy)
    assert torch.equal(table.correct[each, stops], done.logits.argmax(1) == labels)
    assert torch.equal(table.macs[stops].long(), done.spent_macs)


def given_route(route: Tensor) -> Choose:
    return lambda gate, logit, execute: route[gate].expand_as(logit)


@pytest.mark.parametrize("price", [0.0, 0.7])
def test_the_gradient_is_that_of_reinforce_over_all_actions(price: float) -> None:
    """``sum over action sequences of pi(a) grad log pi(a) R(a)``, by enumeration."""
    net, x = cascade(), images(7)
    labels = torch.arange(7) % CLASSES
    table = table_of(net, x, labels)
    expected_return(table, table.gate_logits(net.gate), price).backward()
    exact = [parameter.grad.clone() for parameter in net.gate.parameters() if parameter.grad is not None]
    net.gate.zero_grad()
    cost = count(net, 6)
    whole = cost.backbone_macs + sum(cost.gate_macs)
    value = torch.zeros(())
    for first, second in itertools.product((0.0, 1.0), repeat=2):
        if second > first:
            continue  # stopping is final
        wanted = torch.tensor([first, second])
        done = rollout(
            net, cost, x, labels, lambda gate, logit, _, a=wanted: a[gate].expand_as(logit), backbone_grad=False
        )
        earned = -done.cross_entropy - price * done.spent_macs / whole
        likely = done.log_probs.sum(1)
        value = value + (likely.detach().exp() * likely * earned.detach()).sum() / 7
    value.backward()
    enumerated = [parameter.grad for parameter in net.gate.parameters() if parameter.grad is not None]
    assert len(exact) == len(enumerated) == 4
    for a, b in zip(exact, enumerated, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_sampled_reinforce_agrees_in_the_mean() -> None:
    net, x = cascade(2), images(4).repeat(20_000, 1, 1, 1)
    labels = torch.arange(4).repeat(20_000) % CLASSES
    table = table_of(net, x[:4], labels[:4])
    expected_return(table, table.gate_logits(net.gate), 0.5).backward()
    exact = net.gate.linears[0].weight.grad.clone()
    net.gate.zero_grad()
    cost = count(net, 6)
    uniform = torch.rand(len(x), 1, generator=torch.Generator().manual_seed(0))
    done = rollout(net, cost, x, labels, choose_by(uniform), backbone_grad=False)
    earned = -done.cross_entropy.detach() - 0.5 * done.spent_macs / (cost.backbone_macs + cost.gate_macs[0])
    baseline = earned.view(-1, 4).mean(0).repeat(20_000)  # of each image
    (-policy_loss(done.log_probs, (earned - baseline).unsqueeze(1))).backward()
    sampled = net.gate.linears[0].weight.grad
    assert float((sampled - exact).norm() / exact.norm()) < 0.1


def test_training_finds_which_images_gain_and_keeps_to_the_budget() -> None:
    """Half of the images gain by going on; the margin does not tell them apart, the entropy does."""
    count_, draw = 2000, torch.Generator().manual_seed(0)
    gains = torch.arange(count_) % 2 == 0
    labels = torch.zeros(count_, dtype=torch.long)
    first = torch.tensor([1.0, 2.0, -9.0, -9.0]).repeat(count_, 1)  # wrong, with the same margin either way
    first[~gains] = torch.tensor([2.9, 2.0, 0.9, 0.9])
    first = first + 0.05 * torch.randn(first.shape, generator=draw)
    second = first.clone()
    second[gains] = torch.tensor([6.0, 0.0, 0.0, 0.0])
    table = StoppingTable(torch.stack([first, second]), labels, torch.tensor([100.0, 300.0], dtype=torch.float64))
    gate = ConfidenceGate(1, CLASSES)
    before = table.stops(table.gate_logits(gate).detach())
    price = train_gates(gate, table, 200.0)
    with torch.no_grad():
        logits = table.gate_logits(gate)
    stops = table.stops(logits, threshold_at(table, logits, 200.0))
    assert price > 0
    assert table.mean_macs(stops) == pytest.approx(200, rel=0.01)
    right = float(table.correct[torch.arange(count_), stops].float().mean())
    assert right > 0.99 > float(table.correct[torch.arange(count_), before].float().mean())


@given(st.integers(2, 4), st.integers(2, 60), st.floats(0.05, 0.95), st.integers(0, 50))
def test_a_threshold_comes_as_near_to_the_budget_as_any(members: int, count_: int, share: float, seed: int) -> None:
    table = random_table(members, count_, seed)
    gate = ConfidenceGate(members - 1, CLASSES)
    with torch.no_grad():
        logits = table.gate_logits(gate)
    target = float(table.macs[0] + share * (table.macs[-1] - table.macs[0]))
    found = table.mean_macs(table.stops(logits, threshold_at(table, logits, target)))
    each = [table.mean_macs(table.stops(logits, value)) for value in (-math.inf, *logits.flatten().tolist())]
    assert abs(found - target) == pytest.approx(min(abs(macs - target) for macs in each), abs=1e-6)


def test_macs_rise_by_what_each_member_and_its_gate_cost() -> None:
    cost = NetworkCost(100, (0, 0), 0, (205, 400), (5, 0), 0, 0)
    assert stop_macs(cost).tolist() == [105, 310, 710]
    assert float(stop_macs(cost)[-1]) == cost.expected_macs([1, 1])


def test_trained_gates_meet_the_budget_by_the_price_alone_before_any_threshold() -> None:
    table = random_table(3, 2000)
    gate = ConfidenceGate(2, CLASSES)
    target = 0.75 * float(table.macs[-1])
    train_gates(gate, table, target)
    with torch.no_grad():
        stops = table.stops(table.gate_logits(gate))
    assert table.mean_macs(stops) == pytest.approx(target, rel=0.05)
    assert len(stops.unique()) == 3


def test_one_search_serves_many_costs_and_budgets() -> None:
    table = random_table(3, 200)
    with torch.no_grad():
        logits = table.gate_logits(ConfidenceGate(2, CLASSES))
    limits, reached = rates_by_threshold(logits)
    assert bool((limits.diff() > 0).all())
    for index in (0, 7, len(limits) // 2, len(limits) - 1):
        stops = table.stops(logits, float(limits[index]))
        assert reached[:, index].tolist() == pytest.approx([float((stops >= k).double().mean()) for k in (1, 2)])
        assert float(mean_macs_at(reached, table.macs)[index]) == pytest.approx(table.mean_macs(stops))
    macs = torch.stack([table.macs, 2 * table.macs, table.macs + 50])
    targets = torch.tensor([300.0, 700.0, 10.0], dtype=torch.float64)
    found = nearest(mean_macs_at(reached, macs), targets)
    for each, target, index in zip(macs, targets, found, strict=True):
        alone = mean_macs_at(reached, each)
        assert int(nearest(alone, target)) == int(index)
        assert float((alone[index] - target).abs()) == float((alone - target).abs().min())
