"""REINFORCE against brute force: double sums, and the exact gradient over all 2^3 routes of a net of three gates."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hybridprune.config import RoutingOptions
from hybridprune.data import Batch
from hybridprune.engine.distill import Distillation
from hybridprune.measure.cost import count
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.routing import policy_gradient
from hybridprune.routing.loss import RoutingTerms
from hybridprune.routing.policy_gradient import PolicyGradient, policy_loss, returns
from hybridprune.routing.price import DAMPING, MOMENTUM, Price
from hybridprune.routing.rollout import choose_by, choose_flipping, rollout
from hybridprune.store.seeds import generator
from tests.routing.cases import SIZE, batch_of, labelled, objective, three_gates

UNBIASED = ("none", "moving_average", "self_critical")
BASELINES = (*UNBIASED, "counterfactual")


@given(st.integers(1, 5), st.integers(1, 6), st.sampled_from([0.0, 0.5, 0.9, 1.0]), st.integers(0, 1000))
def test_returns_are_the_double_sum(batch: int, gates: int, gamma: float, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    rewards = torch.randn(batch, gates, generator=draw, dtype=torch.float64)
    cross_entropy = torch.rand(batch, generator=draw, dtype=torch.float64)
    found = returns(rewards, cross_entropy, gamma)
    assert found.shape == (batch, gates)
    for n in range(batch):
        for i in range(gates):
            expected = sum(gamma ** (j - i) * float(rewards[n, j]) for j in range(i, gates))
            expected -= gamma ** (gates - i) * float(cross_entropy[n])
            assert float(found[n, i]) == pytest.approx(expected, abs=1e-12)


def test_an_images_returns_are_its_own() -> None:
    rewards, cross_entropy = torch.rand(2, 2), torch.rand(2)
    before = returns(rewards, cross_entropy, 0.9)
    after = returns(rewards, cross_entropy + torch.tensor([0.0, 5.0]), 0.9)
    assert torch.equal(before[0], after[0])
    assert bool((before[1] != after[1]).all())


@pytest.mark.parametrize("shape", [(2, 1), (1,), (2, 2), (3,), ()])
def test_returns_refuse_to_broadcast(shape: tuple[int, ...]) -> None:
    with pytest.raises(AssertionError):
        returns(torch.rand(2, 3), torch.rand(shape), 0.9)


def test_policy_loss_in_closed_form() -> None:
    log_probs = torch.tensor([[-1.0, -2.0], [-3.0, -4.0], [-5.0, -6.0]], requires_grad=True)
    advantages = torch.tensor([[1.0, 10.0], [100.0, 0.0], [0.0, -1.0]], requires_grad=True)
    loss = policy_loss(log_probs, advantages)
    assert float(loss.detach()) == pytest.approx((1 + 20 + 300 - 6) / 3)
    loss.backward()
    torch.testing.assert_close(log_probs.grad, -advantages.detach() / 3)
    assert advantages.grad is None
    with pytest.raises(AssertionError):
        policy_loss(log_probs, advantages[:, :1])


def gate_gradient(net: GatedNetwork) -> Tensor:
    return torch.cat([p.grad.flatten() for p in net.gate.parameters() if p.grad is not None]).double()


ALPHA, EXPLORATION, TEMPERATURE = 5.0, 0.1, 2.0
ROUTES = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3)))


def value_of(net: GatedNetwork, images: Tensor, labels: Tensor, actions: Tensor) -> Tensor:
    """The undiscounted return ``[B]`` of whole routes."""
    shares = torch.tensor(count(net, SIZE).block_shares)
    losses = F.cross_entropy(net(images, actions).logits, labels, reduction="none")
    return (ALPHA * (1 - actions) @ shares - losses).detach()


def exact_gradient(net: GatedNetwork, images: Tensor, labels: Tensor) -> Tensor:
    """Gradient in the gates of the mean over images of the expected return, over all routes."""
    cost = count(net, SIZE)
    options: Any = {"exploration": EXPLORATION, "temperature": TEMPERATURE}
    expected = torch.zeros(())
    total = torch.zeros(len(images))
    for number in range(2**net.num_gates):
        route = torch.tensor([number >> i & 1 for i in range(net.num_gates)]).float().expand(len(images), -1)
        episode = rollout(net, cost, images, labels, choose_by(1 - route), **options)
        assert torch.equal(episode.actions, route)
        probability = episode.log_probs.sum(1).exp()
        expected = expected + (probability * value_of(net, images, labels, route)).mean()
        total += probability.detach()
    torch.testing.assert_close(total, torch.ones(len(images)))
    net.zero_grad()
    expected.backward()
    return gate_gradient(net)


def exact_one_gate_gradient(net: GatedNetwork, images: Tensor, labels: Tensor) -> Tensor:
    """Gradient of the sum over gates of the expected gain when that gate alone is sampled, all others greedy.

    A gate's gains are measured in their own root mean square.
    """
    cost = count(net, SIZE)
    greedy = value_of(net, images, labels, net(images).decisions)
    expected = torch.zeros(())
    for gate in range(net.num_gates):
        flip = choose_flipping(torch.full((len(images),), gate))
        episode = rollout(net, cost, images, labels, flip, exploration=EXPLORATION, temperature=TEMPERATURE)
        gain = value_of(net, images, labels, episode.actions) - greedy
        expected = expected + (episode.log_probs[:, gate].exp() * gain).mean() / gain.square().mean().sqrt()
    net.zero_grad()
    expected.backward()
    return gate_gradient(net)


@pytest.mark.parametrize("baseline", BASELINES)
def test_the_mean_of_sampled_gradients_is_the_exact_gradient(baseline: str) -> None:
    net = three_gates()
    images, labels = labelled(2)
    weight, copies, samples = 0.5, 128, 80
    exact = (exact_gradient if baseline in UNBIASED else exact_one_gate_gradient)(net, images, labels)

    total = 2 * copies
    sampled = objective(
        net,
        total,
        baseline=baseline,
        reward_scale=ALPHA,
        exploration=EXPLORATION,
        temperature=TEMPERATURE,
        rl_weight=weight,
        gamma=1.0,
    )
    batch = batch_of(torch.arange(total), images.repeat(copies, 1, 1, 1), labels.repeat(copies))
    found = []
    for epoch in range(samples):
        net.zero_grad()
        loss, _ = sampled(net, batch, epoch)
        loss.backward()
        found.append(-gate_gradient(net) / weight)  # the loss falls where the return rises
    gradients = torch.stack(found)
    directions = F.normalize(torch.randn(30, len(exact), generator=torch.Generator().manual_seed(0)).double(), dim=1)
    directions = torch.cat([F.normalize(exact, dim=0)[None], directions])
    along = gradients @ directions.T
    error = along.std(0) / samples**0.5
    assert bool(((along.mean(0) - directions @ exact).abs() < 4 * error).all())
    assert float(exact.norm()) > 15 * float(error[0])  # otherwise anything would pass


def exact_discounted_gradient(net: GatedNetwork, images: Tensor, labels: Tensor, gamma: float) -> Tensor:
    """Mean over images of ``sum over routes of pi(route) sum_i grad log pi(a_i) R_i``, the returns by hand."""
    cost = count(net, SIZE)
    surrogate = torch.zeros(())
    for route in ROUTES:
        actions = route.expand(len(images), -1)
        options: Any = {"exploration": EXPLORATION, "temperature": TEMPERATURE}
        episode = rollout(net, cost, images, labels, choose_by(1 - actions), **options)
        weight = episode.log_probs.sum(1).exp().detach()
        losses = F.cross_entropy(net(images, actions).logits, labels, reduction="none").detach()
        for i in range(3):
            skipped = sum(gamma ** (j - i) * ALPHA * cost.block_shares[j] * (1 - float(route[j])) for j in range(i, 3))
            following = skipped - gamma ** (3 - i) * losses
            surrogate = surrogate + (weight * episode.log_probs[:, i] * following).mean()
    net.zero_grad()
    surrogate.backward()
    return gate_gradient(net)


def forced(monkeypatch: pytest.MonkeyPatch, route: Tensor) -> None:
    """Whatever an objective draws, it takes this route."""
    monkeypatch.setattr(policy_gradient, "choose_by", lambda uniform: choose_by(1 - route.expand(len(uniform), -1)))


@pytest.mark.parametrize("frozen", [False, True], ids=["backbone learns", "backbone frozen"])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("baseline", UNBIASED)
def test_the_objective_weighted_over_all_routes_is_the_exact_gradient(
    baseline: str, gamma: float, frozen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = three_gates()
    images, labels = labelled(2)
    exact = exact_discounted_gradient(net, images, labels, gamma)
    if gamma == 1:  # rewards of the gates before do not depend on a gate's action
        torch.testing.assert_close(exact, exact_gradient(net, images, labels), rtol=1e-3, atol=1e-5)
    net.backbone.requires_grad_(not frozen)
    cost = count(net, SIZE)
    options: Any = {"exploration": EXPLORATION, "temperature": TEMPERATURE}
    sampled = objective(net, 2, baseline=baseline, gamma=gamma, reward_scale=ALPHA, rl_weight=0.5, **options)
    state = {**sampled.state_dict(), "average": torch.tensor([0.3, -0.7, 1.1])}
    found = torch.zeros_like(exact)
    for route in ROUTES:
        forced(monkeypatch, route)
        probabilities = rollout(net, cost, images, labels, choose_by(1 - route.expand(2, -1)), **options).log_probs
        for image in range(2):
            sampled.load_state_dict(copy.deepcopy(state))
            net.zero_grad()
            sampled(net, batch_of(torch.tensor([image]), images, labels), 0)[0].backward()
            found -= probabilities[image].detach().double().sum().exp() * gate_gradient(net) / 0.5 / 2
    torch.testing.assert_close(found, exact, rtol=1e-3, atol=1e-4 * float(exact.abs().max()))
    assert float(exact.norm()) > 1e-2


@pytest.mark.parametrize("baseline", BASELINES)
def test_the_gates_learn_the_same_from_a_frozen_backbone(baseline: str) -> None:
    net = three_gates()
    batch = batch_of(torch.arange(8), *labelled(8))
    gradients = []
    for frozen in (False, True):
        net.backbone.requires_grad_(not frozen)
        net.zero_grad()
        objective(net, 8, baseline=baseline)(net, batch, 0)[0].backward()
        gradients.append(gate_gradient(net))
    assert torch.equal(*gradients) and bool(gradients[0].any())
    assert all(p.grad is None for p in net.backbone.parameters())


@pytest.mark.parametrize("baseline", BASELINES)
def test_with_trained_batchnorm_gates_learn_in_eval_mode_and_the_backbone_in_training_mode(baseline: str) -> None:
    net = three_gates()
    images, labels = labelled(8)
    batch = batch_of(torch.arange(8), images, labels)
    objective(net, 8, baseline=baseline)(net, batch, 0)[0].backward()
    gates = gate_gradient(net)

    other = three_gates().train()
    objective(other, 8, baseline=baseline, batchnorm="trained")(other, batch, 0)[0].backward()
    torch.testing.assert_close(gate_gradient(other), gates, rtol=1e-4, atol=1e-6)
    assert all(module.training for module in other.modules())

    drawn = rollout_of(three_gates(), baseline, batch)
    oracle = three_gates().train()
    F.cross_entropy(oracle(images, drawn).logits, labels).backward()
    for (name, one), two in zip(oracle.backbone.named_parameters(), other.backbone.parameters(), strict=True):
        torch.testing.assert_close(two.grad, one.grad, msg=lambda text, name=name: f"{name}: {text}")
    # Statistics have moved by this one pass, and by nothing that explored.
    for (name, one), two in zip(oracle.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(two, one, msg=lambda text, name=name: f"{name}: {text}")
    assert not torch.equal(oracle.backbone.bn.running_mean, net.backbone.bn.running_mean)


def rollout_of(net: GatedNetwork, baseline: str, batch: Batch) -> Tensor:
    """The actions ``[B, N]`` that the objective of seed 0 explores in epoch 0."""
    uniform = torch.rand(8, net.num_gates, generator=generator(0, "actions", 0))
    flips = (uniform[:, 0] * 2 * net.num_gates).long()
    choose = choose_flipping(flips) if baseline == "counterfactual" else choose_by(uniform)
    return rollout(net, count(net, SIZE), batch.images, batch.labels, choose, exploration=0.1).actions


@pytest.mark.parametrize("baseline", BASELINES)
def test_the_same_seed_gives_the_same_loss(baseline: str) -> None:
    net = three_gates()
    batch = batch_of(torch.arange(8), *labelled(8))

    def losses(seed: int) -> list[float]:
        torch.manual_seed(torch.seed())  # the global stream has no say
        sampled = objective(net, 8, seed=seed, baseline=baseline, entropy_bonus=0.1, rate_bound=0.2)
        return [float(sampled(net, batch, epoch)[0].detach()) for epoch in range(3)]

    assert losses(1) == losses(1) != losses(2)


@pytest.mark.parametrize("baseline", BASELINES)
def test_the_backbones_gradient_is_that_of_the_mean_cross_entropy(baseline: str) -> None:
    net = three_gates()
    images, labels = labelled(8)
    loss, _ = objective(net, 8, baseline=baseline, rl_weight=100.0)(net, batch_of(torch.arange(8), images, labels), 0)
    loss.backward()
    found = [p.grad.clone() for p in net.backbone.parameters() if p.grad is not None]
    net.zero_grad()
    objective(net, 8, baseline=baseline, rl_weight=0.0)(net, batch_of(torch.arange(8), images, labels), 0)[0].backward()
    expected = [p.grad for p in net.backbone.parameters() if p.grad is not None]
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


def route_of_each(
    net: GatedNetwork, baseline: str, ids: list[int], seed: int, epoch: int, size: int
) -> dict[str, Tensor]:
    """The metrics, which are means over the batch, of these images of a set of eight, in batches of ``size``."""
    images, labels = labelled(8)
    sampled = objective(net, 8, seed=seed, baseline=baseline)
    parts = [sampled(net, batch_of(part, images, labels), epoch)[1] for part in torch.tensor(ids).split(size)]
    return {name: torch.stack([part[name] for part in parts]).mean() for name in ("rate", "cross_entropy", "return")}


@pytest.mark.parametrize("baseline", ["self_critical", "counterfactual"])
def test_actions_belong_to_the_seed_the_epoch_and_the_image(baseline: str) -> None:
    net = three_gates()
    together = route_of_each(net, baseline, [0, 1, 2, 3, 4, 5, 6, 7], seed=1, epoch=3, size=8)
    shuffled = route_of_each(net, baseline, [5, 2, 7, 0, 1, 6, 4, 3], seed=1, epoch=3, size=4)
    alone = route_of_each(net, baseline, [7, 6, 5, 4, 3, 2, 1, 0], seed=1, epoch=3, size=1)
    torch.testing.assert_close(shuffled, together, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-6)
    for seed, epoch in ((2, 3), (1, 4)):
        other = route_of_each(net, baseline, [0, 1, 2, 3, 4, 5, 6, 7], seed=seed, epoch=epoch, size=8)
        assert float((other["cross_entropy"] - together["cross_entropy"]).abs()) > 1e-4


@pytest.mark.parametrize("baseline", BASELINES)
def test_rollouts_leave_batchnorm_statistics_alone(baseline: str) -> None:
    net = three_gates()
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    images, labels = labelled(8)
    objective(net, 8, baseline=baseline)(net, batch_of(torch.arange(8), images, labels), 0)
    assert len(before) > 0 and all(torch.equal(buffer, before[name]) for name, buffer in net.named_buffers())


def test_the_moving_average_is_of_earlier_batches_and_survives_a_resume() -> None:
    net = three_gates()
    images, labels = labelled(8)
    batch = batch_of(torch.arange(8), images, labels)

    def losses(sampled: PolicyGradient, epochs: range) -> list[float]:
        return [float(sampled(net, batch, epoch)[0].detach()) for epoch in epochs]

    options = {"baseline": "moving_average", "rl_weight": 10.0}
    whole = losses(objective(net, 8, **options), range(4))
    first, second = objective(net, 8, **options), objective(net, 8, **options)
    assert losses(first, range(2)) == whole[:2]
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert losses(second, range(2, 4)) == whole[2:]
    # Nothing is subtracted from the first batch; what is subtracted from the second is the first's doing.
    none = losses(objective(net, 8, baseline="none", rl_weight=10.0), range(2))
    assert none[0] == whole[0] and none[1] != whole[1]
    assert losses(objective(net, 8, **options), range(2, 4)) != whole[2:]


def test_counterfactual_rollouts_are_greedy_in_half_of_the_images() -> None:
    net = three_gates()
    images, labels = labelled(1)
    greedy = net(images)
    sampled = objective(net, 200, baseline="counterfactual")
    untouched = 0
    for index in range(200):
        metrics = sampled(net, Batch(images, labels, torch.tensor([index])), 0)[1]
        if float(metrics["advantage"]) == 0:
            untouched += 1
            assert float(metrics["rate"]) == pytest.approx(float(greedy.decisions.mean()))
            loss = F.cross_entropy(greedy.logits, labels)
            assert float(metrics["cross_entropy"]) == pytest.approx(float(loss.detach()), rel=1e-5)
    assert 72 < untouched < 128


def test_the_gates_do_not_learn_during_the_warm_up() -> None:
    net = three_gates()
    images, labels = labelled(8)
    sampled = objective(net, 8, epochs=10, rl_warmup=0.3)
    for epoch in range(5):
        net.zero_grad()
        sampled(net, batch_of(torch.arange(8), images, labels), epoch)[0].backward()
        assert bool(gate_gradient(net).any()) == (epoch >= 3)
        assert all(bool(p.grad.any()) for p in net.backbone.classifier.parameters() if p.grad is not None)


def test_gates_that_learn_alone_have_no_warm_up_and_ask_no_gradient_of_the_backbone() -> None:
    net, images, labels = three_gates(), *labelled(8)
    gradients = []
    for train in ("gates", "backbone,gates"):
        net.zero_grad()
        sampled = objective(net, 8, train=train, rl_warmup=0.9 if train == "gates" else 0.0)
        sampled(net, batch_of(torch.arange(8), images, labels), 0)[0].backward()
        gradients.append(gate_gradient(net))
        assert all((p.grad is None) == (train == "gates") for p in net.backbone.parameters())
    assert bool(gradients[0].any())
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)


def test_a_route_that_is_the_greedy_one_has_no_self_critical_advantage() -> None:
    net = three_gates()
    torch.nn.init.zeros_(net.gate.score.weight)
    torch.nn.init.constant_(net.gate.score.bias, 60.0)  # always executes, whatever is drawn
    images, labels = labelled(8)
    batch = batch_of(torch.arange(8), images, labels)
    for baseline, zero in (("self_critical", True), ("none", False)):
        metrics = objective(net, 8, baseline=baseline, exploration=0.0)(net, batch, 0)[1]
        assert (float(metrics["advantage"]) < 1e-5) == zero


@pytest.mark.parametrize("baseline", BASELINES)
def test_entropy_and_rate_bounds_are_added_to_the_loss(baseline: str) -> None:
    net = three_gates()
    images, labels = labelled(8)
    batch = batch_of(torch.arange(8), images, labels)
    plain = objective(net, 8, baseline=baseline, rl_weight=0.5)(net, batch, 0)[0]
    more = objective(net, 8, baseline=baseline, rl_weight=0.5, entropy_bonus=2.0)(net, batch, 0)[0]
    bounded = objective(net, 8, baseline=baseline, rl_weight=0.5, rate_bound=0.5, epochs=4)
    # The same draws take the same route, so what is added can be computed from that route's logits.
    assert 0 < float((plain - more).detach()) <= 0.5 * 2.0 * net.num_gates * math.log(2) + 1e-6
    assert float((bounded(net, batch, 0)[0] - plain).detach()) > 0
    if baseline in ("none", "self_critical"):  # the others remember the batches before
        late, unbounded = (
            each(net, batch, 2)[0].detach() for each in (bounded, objective(net, 8, baseline=baseline, rl_weight=0.5))
        )
        assert float(late) == pytest.approx(float(unbounded))


@pytest.mark.parametrize("route", [0, 5, 7])
def test_entropy_and_rate_bounds_in_closed_form(route: int, monkeypatch: pytest.MonkeyPatch) -> None:
    net = three_gates()
    images, labels = labelled(8)
    batch = batch_of(torch.arange(8), images, labels)
    forced(monkeypatch, ROUTES[route])
    options: Any = {"baseline": "none", "rl_weight": 0.5, "exploration": EXPLORATION, "temperature": TEMPERATURE}

    def loss_and_gradient(epoch: int, **more: Any) -> tuple[float, Tensor]:
        net.zero_grad()
        loss, _ = objective(net, 8, epochs=4, **options, **more)(net, batch, epoch)
        loss.backward()
        return float(loss.detach()), gate_gradient(net)

    def expected(epoch: int) -> dict[str, Tensor]:
        logits = net(images, ROUTES[route].expand(8, -1)).gate_logits
        p = EXPLORATION + (1 - 2 * EXPLORATION) * torch.sigmoid(logits / TEMPERATURE)
        rates, bound = p.mean(0), 0.5 * (1 - 2 * epoch / 4)
        missed = torch.where(rates < bound, bound - rates, (rates - (1 - bound)).clamp(min=0))
        bernoulli = torch.distributions.Bernoulli(p).entropy()
        return {"entropy_bonus": -0.5 * 3.0 * bernoulli.sum(1).mean(), "rate_bound": 7.0 * missed.square().sum()}

    for epoch in (0, 1, 2):
        plain, plain_gradient = loss_and_gradient(epoch)
        for name, value in (("entropy_bonus", 3.0), ("rate_bound", 0.5)):
            loss, gradient = loss_and_gradient(epoch, rate_bound_weight=7.0, **{name: value})
            net.zero_grad()
            term = expected(epoch)[name]
            term.backward()
            assert loss - plain == pytest.approx(float(term.detach()), abs=1e-5)
            torch.testing.assert_close(gradient - plain_gradient, gate_gradient(net), rtol=1e-3, atol=1e-5)
            assert epoch > 0 or (abs(loss - plain) > 1e-3 and bool(gate_gradient(net).any()))


@pytest.mark.parametrize("baseline", ["none", "counterfactual"])
def test_distillation_takes_its_share_of_the_cross_entropy(baseline: str) -> None:
    net, teacher = three_gates(), three_gates(seed=3)
    batch = batch_of(torch.arange(8), *labelled(8))

    def loss_of(weight: float) -> float:
        distillation = Distillation.of(teacher, weight, 4.0)
        sampled = objective(net, 8, distillation=distillation, baseline=baseline, rl_weight=0.0)
        return float(sampled(net, batch, 0)[0].detach())

    plain, taught = loss_of(0.0), loss_of(1.0)
    assert loss_of(0.25) == pytest.approx(0.75 * plain + 0.25 * taught, rel=1e-5)
    assert abs(taught - plain) > 1e-2 and taught > 0


def test_the_price_waits_for_the_warm_up_and_while_the_budget_is_held() -> None:
    net = three_gates()
    batch = batch_of(torch.arange(8), *labelled(8))
    cpu = torch.device("cpu")
    price = Price(0.5, 0.1, 0.1, cpu)
    options = RoutingOptions(epochs=10, rl_warmup=0.2, target_flops=0.1)
    sampled = PolicyGradient(net, RoutingTerms.of(count(net, SIZE), options, price, cpu), images=8, seed=0)
    prices = [float(sampled(net, batch, epoch)[1]["price"]) for epoch in range(4)]
    assert prices[:2] == [0.5, 0.5] and 0.5 < prices[2] < prices[3]
    price.validated(0.1)
    assert float(sampled(net, batch, 4)[1]["price"]) == prices[3]
    price.validated(0.2)
    assert float(sampled(net, batch, 5)[1]["price"]) > prices[3]


def test_a_budget_moves_the_price_until_it_is_held() -> None:
    net = three_gates()
    images, labels = labelled(8)
    batch = batch_of(torch.arange(8), images, labels)
    cheap = objective(net, 8, target_flops=10.0, price_step=0.1, reward_scale=1.0)
    dear = objective(net, 8, target_flops=0.1, price_step=0.1, reward_scale=1.0)
    prices = {
        name: [float(each(net, batch, epoch)[1]["price"]) for epoch in range(3)]
        for name, each in (("cheap", cheap), ("dear", dear))
    }
    assert prices["cheap"] == sorted(prices["cheap"], reverse=True) and prices["cheap"][0] < 1
    # Twice too dear and more counts as 100 % of excess: a step of 0.1 each, and what lasts of it.
    expected = [math.exp(0.1 * k + DAMPING * (1 - MOMENTUM**k)) for k in (1, 2, 3, 4)]
    assert prices["dear"] == pytest.approx(expected[:3])
    resumed = objective(net, 8, target_flops=0.1, price_step=0.1, reward_scale=1.0)
    resumed.load_state_dict(copy.deepcopy(dear.state_dict()))
    assert float(resumed(net, batch, 3)[1]["price"]) == pytest.approx(expected[3])
    fixed = objective(net, 8, reward_scale=1.0)
    assert float(fixed(net, batch, 0)[1]["price"]) == 1
