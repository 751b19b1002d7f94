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
from tests.routing.three_gates import SIZE, batch_of, labelled, objective, three_gates

ESTIMATES: dict[str, dict[str, Any]] = {
    "none": {"baseline": "none"},
    "moving_average": {"baseline": "moving_average"},
    "self_critical": {"baseline": "self_critical"},
    "counterfactual": {"baseline": "counterfactual"},
    "counterfactual, sampled": {"baseline": "counterfactual", "flip_from": "sampled"},
}
BASELINES = tuple(ESTIMATES)


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
POLICY: dict[str, Any] = {"exploration": EXPLORATION, "temperature": TEMPERATURE}
ROUTES = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3)))


def value_of(net: GatedNetwork, images: Tensor, labels: Tensor, actions: Tensor) -> Tensor:
    """The undiscounted return ``[B]`` of whole routes."""
    shares = torch.tensor(count(net, SIZE).block_shares)
    losses = F.cross_entropy(net(images, actions).logits, labels, reduction="none")
    return (ALPHA * (1 - actions) @ shares - losses).detach()


def returns_of(net: GatedNetwork, images: Tensor, labels: Tensor, actions: Tensor, gamma: float) -> Tensor:
    """The returns ``[B, N]`` of routes, from each gate on, by hand."""
    shares = count(net, SIZE).block_shares
    losses = F.cross_entropy(net(images, actions).logits, labels, reduction="none").detach()
    skipped = [ALPHA * share * (1 - actions[:, j]) for j, share in enumerate(shares)]
    gates = len(shares)
    return torch.stack(
        [
            sum((gamma ** (j - i) * skipped[j] for j in range(i, gates)), -(gamma ** (gates - i)) * losses)
            for i in range(gates)
        ],
        1,
    )


def exact_gradient(net: GatedNetwork, images: Tensor, labels: Tensor) -> Tensor:
    """Gradient in the gates of the mean over images of the expected return, over all routes."""
    cost = count(net, SIZE)
    expected = torch.zeros(())
    total = torch.zeros(len(images))
    for number in range(2**net.num_gates):
        route = torch.tensor([number >> i & 1 for i in range(net.num_gates)]).float().expand(len(images), -1)
        episode = rollout(net, cost, images, labels, choose_by(1 - route), **POLICY)
        assert torch.equal(episode.actions, route)
        probability = episode.log_probs.sum(1).exp()
        expected = expected + (probability * value_of(net, images, labels, route)).mean()
        total += probability.detach()
    torch.testing.assert_close(total, torch.ones(len(images)))
    net.zero_grad()
    expected.backward()
    return gate_gradient(net)


def exact_discounted_gradient(net: GatedNetwork, images: Tensor, labels: Tensor, gamma: float) -> Tensor:
    """Mean over images of ``sum over routes of pi(route) sum_i grad log pi(a_i) R_i``, the returns by hand."""
    cost = count(net, SIZE)
    surrogate = torch.zeros(())
    for route in ROUTES:
        actions = route.expand(len(images), -1)
        episode = rollout(net, cost, images, labels, choose_by(1 - actions), **POLICY)
        weight = episode.log_probs.sum(1, keepdim=True).exp().detach()
        weighted = weight * returns_of(net, images, labels, actions, gamma)
        surrogate = surrogate + (episode.log_probs * weighted).sum(1).mean()
    net.zero_grad()
    surrogate.backward()
    return gate_gradient(net)


def exact_one_gate_gradient(
    net: GatedNetwork, images: Tensor, labels: Tensor, gamma: float = 1.0, scaled: bool = True
) -> Tensor:
    """Gradient of the sum over gates of the expected return when that gate alone is sampled, all others greedy.

    If ``scaled``, a gate's gains over the greedy route are measured in their own root mean square.
    """
    cost = count(net, SIZE)
    greedy = returns_of(net, images, labels, net(images).decisions, gamma)
    expected = torch.zeros(())
    for gate in range(net.num_gates):
        flip = choose_flipping(torch.full((len(images),), gate))
        episode = rollout(net, cost, images, labels, flip, **POLICY)
        gain = (returns_of(net, images, labels, episode.actions, gamma) - greedy)[:, gate]
        scale = gain.square().mean().sqrt() if scaled else 1.0
        expected = expected + (episode.log_probs[:, gate].exp() * gain).mean() / scale
    net.zero_grad()
    expected.backward()
    return gate_gradient(net)


@pytest.mark.full
@pytest.mark.parametrize("baseline", BASELINES)
def test_the_mean_of_sampled_gradients_is_the_exact_gradient(baseline: str) -> None:
    net = three_gates()
    images, labels = labelled(2)
    weight, copies, samples = 0.5, 128, 40
    greedy = baseline == "counterfactual"
    exact = (exact_one_gate_gradient if greedy else exact_gradient)(net, images, labels)

    total = 2 * copies
    options: Any = {"reward_scale": ALPHA, "rl_weight": weight, "gamma": 1.0, "credit_scale": greedy, **POLICY}
    sampled = objective(net, total, **ESTIMATES[baseline], **options)
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
    assert float(exact.norm()) > 10 * float(error[0])  # otherwise anything would pass


def forced(monkeypatch: pytest.MonkeyPatch, numbers: Tensor) -> None:
    """Objectives made from now on draw these numbers ``[B, columns]``, whatever the epoch and the images."""
    monkeypatch.setattr(policy_gradient, "Draws", lambda *_: lambda epoch, index: numbers)


def every_draw(net: GatedNetwork, images: Tensor, labels: Tensor, image: int) -> tuple[Tensor, Tensor]:
    """All that sampling can do with an image: numbers ``[K, N]``, and the share ``[K]`` of the cube they stand for.

    A gate's probability depends on the decisions before it, so gate i cuts its axis at 2^i places.
    """
    copies = [image] * len(ROUTES)
    routes = rollout(net, count(net, SIZE), images[copies], labels[copies], choose_by(1 - ROUTES), **POLICY)
    assert torch.equal(routes.actions, ROUTES)
    sides = []
    for gate, step in enumerate((8, 4, 2)):  # one route for each way to reach the gate
        cuts = [0.0, *sorted(routes.execute[::step, gate].tolist()), 1.0]
        sides.append([((low + high) / 2, high - low) for low, high in itertools.pairwise(cuts)])
    cells = list(itertools.product(*sides))
    assert len(cells) == 2 * 3 * 5
    numbers = torch.tensor([[middle for middle, _ in cell] for cell in cells])
    return numbers, torch.tensor([math.prod(width for _, width in cell) for cell in cells])


def every_exploration(
    net: GatedNetwork, images: Tensor, labels: Tensor, image: int, baseline: str
) -> tuple[Tensor, Tensor]:
    """What `PolicyGradient` may draw for an image ``[K, columns]``, and the probability ``[K]`` of each."""
    if baseline == "counterfactual":  # each gate, and as often none
        numbers = torch.zeros(6, 3)
        numbers[:, 0] = (torch.arange(6) + 0.5) / 6
        return numbers, torch.full((6,), 1 / 6)
    numbers, shares = every_draw(net, images, labels, image)
    if baseline == "counterfactual, sampled":  # and, in the last column, each gate to flip
        gate = (torch.arange(3) + 0.5) / 3
        numbers = torch.cat([numbers.repeat_interleave(3, 0), gate.repeat(len(numbers))[:, None]], 1)
        shares = shares.repeat_interleave(3) / 3
    return numbers, shares


@pytest.mark.parametrize("frozen", [False, True], ids=["backbone learns", "backbone frozen"])
@pytest.mark.parametrize("gamma", [0.5, *(pytest.param(gamma, marks=pytest.mark.full) for gamma in (0.0, 1.0))])
@pytest.mark.parametrize("baseline", BASELINES)
def test_weighted_over_all_it_may_draw_the_objective_has_the_exact_gradient(
    baseline: str, gamma: float, frozen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = three_gates()
    images, labels = labelled(2)
    if baseline == "counterfactual":
        exact = exact_one_gate_gradient(net, images, labels, gamma, scaled=False)
    else:
        exact = exact_discounted_gradient(net, images, labels, gamma)
        if gamma == 1:  # rewards of the gates before do not depend on a gate's action
            torch.testing.assert_close(exact, exact_gradient(net, images, labels), rtol=1e-3, atol=1e-5)
    (first, first_shares), (second, second_shares) = (
        every_exploration(net, images, labels, image, baseline) for image in range(2)
    )
    assert float(first_shares.sum()) == pytest.approx(1) and float(second_shares.sum()) == pytest.approx(1)
    probabilities = torch.cat([first_shares, second_shares]) / 2

    def expected_loss(log_probs: Tensor, advantages: Tensor) -> Tensor:
        """`policy_loss` with these probabilities in the place of equal ones."""
        return -(log_probs * advantages.detach()).sum(1) @ probabilities

    monkeypatch.setattr(policy_gradient, "policy_loss", expected_loss)
    forced(monkeypatch, torch.cat([first, second]))
    net.backbone.requires_grad_(not frozen)
    which = torch.arange(2).repeat_interleave(len(first))
    options: Any = {"reward_scale": ALPHA, "rl_weight": 0.5, "gamma": gamma, "credit_scale": False, **POLICY}
    sampled = objective(net, len(which), **ESTIMATES[baseline], **options)
    sampled.load_state_dict({**sampled.state_dict(), "average": torch.tensor([0.3, -0.7, 1.1])})
    net.zero_grad()
    sampled(net, Batch(images[which], labels[which], torch.arange(len(which))), 0)[0].backward()
    torch.testing.assert_close(-gate_gradient(net) / 0.5, exact, rtol=1e-3, atol=1e-4 * float(exact.abs().max()))
    assert float(exact.norm()) > 1e-2


def flip_by_hand(net: GatedNetwork, images: Tensor, route: Tensor, gate: Tensor, numbers: Tensor | None) -> Tensor:
    """Routes ``[B, N]`` that take the other action at one gate ``[B]`` and then go on, greedily or by ``numbers``."""
    other = route.clone()
    for i in range(net.num_gates):
        logits = net(images, other).gate_logits[:, i].detach()
        execute = EXPLORATION + (1 - 2 * EXPLORATION) * torch.sigmoid(logits / TEMPERATURE)
        after = (logits > 0) if numbers is None else (numbers[:, i] < execute)
        other[:, i] = torch.where(gate < i, after.float(), torch.where(gate == i, 1 - route[:, i], route[:, i]))
    return other


@pytest.mark.full
@pytest.mark.parametrize("scaled", [False, True], ids=["unscaled", "scaled"])
@pytest.mark.parametrize("flip_from", ["greedy", "sampled"])
def test_counterfactual_credit_of_a_batch_spelt_out(flip_from: str, scaled: bool) -> None:
    net, gates, gamma, size = three_gates(), 3, 0.5, 24
    images, labels = labelled(size)
    options: Any = {"reward_scale": ALPHA, "rl_weight": 0.5, "gamma": gamma, "credit_scale": scaled, **POLICY}
    sampled = objective(net, size, baseline="counterfactual", flip_from=flip_from, **options)
    square = torch.zeros(gates)
    for epoch in range(2):
        net.zero_grad()
        sampled(net, batch_of(torch.arange(size), images, labels), epoch)[0].backward()
        found = gate_gradient(net)

        columns = gates + (flip_from == "sampled")
        numbers = torch.rand(size, columns, generator=generator(0, "actions", epoch))
        if flip_from == "greedy":
            chance, gate = 2 * gates, (numbers[:, 0] * 2 * gates).long()
            before = net(images).decisions
            after = flip_by_hand(net, images, before, gate, None)
            taken, refused = after, before
        else:
            chance, gate = gates, (numbers[:, gates] * gates).long()
            taken = rollout(net, count(net, SIZE), images, labels, choose_by(numbers), **POLICY).actions
            refused = flip_by_hand(net, images, taken, gate, numbers)
        chosen = F.one_hot(gate, 2 * gates)[:, :gates].float()
        gain = returns_of(net, images, labels, taken, gamma) - returns_of(net, images, labels, refused, gamma)
        assert bool((chosen.sum(0) > 1).all())
        mean = (chosen * gain.square()).sum(0) / chosen.sum(0)
        square = mean if epoch == 0 else policy_gradient.MOMENTUM * square + (1 - policy_gradient.MOMENTUM) * mean
        p = EXPLORATION + (1 - 2 * EXPLORATION) * torch.sigmoid(net(images, taken).gate_logits / TEMPERATURE)
        p = torch.where(taken > 0, p, 1 - p)
        net.zero_grad()
        credit = chosen * gain / (square.sqrt() if scaled else 1)
        (-0.5 * chance * (p * credit).sum(1).mean()).backward()
        torch.testing.assert_close(found, gate_gradient(net), rtol=1e-3, atol=1e-5 * float(found.abs().max()))


@pytest.mark.parametrize("baseline", BASELINES)
def test_the_gates_learn_the_same_from_a_frozen_backbone(baseline: str) -> None:
    net = three_gates()
    batch = batch_of(torch.arange(8), *labelled(8))
    gradients = []
    for frozen in (False, True):
        net.backbone.requires_grad_(not frozen)
        net.zero_grad()
        objective(net, 8, **ESTIMATES[baseline])(net, batch, 0)[0].backward()
        gradients.append(gate_gradient(net))
    assert torch.equal(*gradients) and bool(gradients[0].any())
    assert all(p.grad is None for p in net.backbone.parameters())


@pytest.mark.parametrize("baseline", BASELINES)
def test_with_trained_batchnorm_gates_learn_in_eval_mode_and_the_backbone_in_training_mode(baseline: str) -> None:
    net = three_gates()
    images, labels = labelled(8)
    batch = batch_of(torch.arange(8), images, labels)
    objective(net, 8, **ESTIMATES[baseline])(net, batch, 0)[0].backward()
    gates = gate_gradient(net)

    other = three_gates().train()
    objective(other, 8, **ESTIMATES[baseline], batchnorm="trained")(other, batch, 0)[0].backward()
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
    columns = net.num_gates + (baseline == "counterfactual, sampled")
    uniform = torch.rand(8, columns, generator=generator(0, "actions", 0))
    flips = (uniform[:, 0] * 2 * net.num_gates).long()
    choose = choose_flipping(flips) if baseline == "counterfactual" else choose_by(uniform)
    return rollout(net, count(net, SIZE), batch.images, batch.labels, choose, exploration=0.1).actions


@pytest.mark.parametrize("baseline", BASELINES)
def test_the_same_seed_gives_the_same_loss(baseline: str) -> None:
    net = three_gates()
    batch = batch_of(torch.arange(8), *labelled(8))

    def losses(seed: int) -> list[float]:
        torch.manual_seed(torch.seed())  # the global stream has no say
        sampled = objective(net, 8, seed=seed, **ESTIMATES[baseline], entropy_bonus=0.1, rate_bound=0.2)
        return [float(sampled(net, batch, epoch)[0].detach()) for epoch in range(3)]

    assert losses(1) == losses(1) != losses(2)


@pytest.mark.parametrize("baseline", BASELINES)
def test_the_backbones_gradient_is_that_of_the_mean_cross_entropy(baseline: str) -> None:
    net = three_gates()
    images, labels = labelled(8)
    loss, _ = objective(net, 8, **ESTIMATES[baseline], rl_weight=100.0)(
        net, batch_of(torch.arange(8), images, labels), 0
    )
    loss.backward()
    found = [p.grad.clone() for p in net.backbone.parameters() if p.grad is not None]
    net.zero_grad()
    objective(net, 8, **ESTIMATES[baseline], rl_weight=0.0)(net, batch_of(torch.arange(8), images, labels), 0)[
        0
    ].backward()
    expected = [p.grad for p in net.backbone.parameters() if p.grad is not None]
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


def route_of_each(
    net: GatedNetwork, baseline: str, ids: list[int], seed: int, epoch: int, size: int
) -> dict[str, Tensor]:
    """The metrics, which are means over the batch, of these images of a set of eight, in batches of ``size``."""
    images, labels = labelled(8)
    sampled = objective(net, 8, seed=seed, **ESTIMATES[baseline])
    parts = [sampled(net, batch_of(part, images, labels), epoch)[1] for part in torch.tensor(ids).split(size)]
    return {name: torch.stack([part[name] for part in parts]).mean() for name in ("rate", "cross_entropy", "return")}


@pytest.mark.parametrize("baseline", ["self_critical", "counterfactual", "counterfactual, sampled"])
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
    objective(net, 8, **ESTIMATES[baseline])(net, batch_of(torch.arange(8), images, labels), 0)
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
        metrics = objective(net, 8, **ESTIMATES[baseline], exploration=0.0)(net, batch, 0)[1]
        assert (float(metrics["advantage"]) < 1e-5) == zero


@pytest.mark.parametrize("baseline", BASELINES)
def test_entropy_and_rate_bounds_are_added_to_the_loss(baseline: str) -> None:
    net = three_gates()
    images, labels = labelled(8)
    batch = batch_of(torch.arange(8), images, labels)
    plain = objective(net, 8, **ESTIMATES[baseline], rl_weight=0.5)(net, batch, 0)[0]
    more = objective(net, 8, **ESTIMATES[baseline], rl_weight=0.5, entropy_bonus=2.0)(net, batch, 0)[0]
    bounded = objective(net, 8, **ESTIMATES[baseline], rl_weight=0.5, rate_bound=0.5, epochs=4)
    # The same draws take the same route, so what is added can be computed from that route's logits.
    assert 0 < float((plain - more).detach()) <= 0.5 * 2.0 * net.num_gates * math.log(2) + 1e-6
    assert float((bounded(net, batch, 0)[0] - plain).detach()) > 0
    if baseline in ("none", "self_critical"):  # the others remember the batches before
        late, unbounded = (
            each(net, batch, 2)[0].detach()
            for each in (bounded, objective(net, 8, **ESTIMATES[baseline], rl_weight=0.5))
        )
        assert float(late) == pytest.approx(float(unbounded))


@pytest.mark.parametrize("route", [0, 5, 7])
def test_entropy_and_rate_bounds_in_closed_form(route: int, monkeypatch: pytest.MonkeyPatch) -> None:
    net = three_gates()
    images, labels = labelled(8)
    batch = batch_of(torch.arange(8), images, labels)
    forced(monkeypatch, 1 - ROUTES[route].expand(8, -1))
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
        sampled = objective(net, 8, distillation=distillation, **ESTIMATES[baseline], rl_weight=0.0)
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
