"""Rollouts are the network's own routing; log-probabilities are those of the squeezed Bernoulli."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hybridprune.measure.cost import count
from hybridprune.models.routed import Mode
from hybridprune.routing.rollout import choose_by, choose_flipping, choose_greedily, rollout
from tests.routing.three_gates import SIZE, labelled, three_gates

BATCH = 16


@pytest.mark.parametrize("exploration", [0.0, 0.3])
@pytest.mark.parametrize("mode", ["masked", "executed"])
def test_greedy_rollouts_are_what_the_network_does(mode: Mode, exploration: float) -> None:
    net = three_gates()
    images, labels = labelled(BATCH)
    episode = rollout(net, count(net, SIZE), images, labels, choose_greedily, exploration=exploration, temperature=3.0)
    routed = net(images, mode=mode)
    assert 0 < routed.decisions.mean() < 1 and bool((routed.decisions.std(0) > 0).any())
    assert torch.equal(episode.actions, routed.decisions)
    torch.testing.assert_close(episode.logits, routed.logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 5.0])
@pytest.mark.parametrize("exploration", [0.0, 0.1, 0.5])
def test_actions_and_their_probabilities_in_closed_form(exploration: float, temperature: float) -> None:
    net = three_gates()
    images, labels = labelled(BATCH)
    uniform = torch.rand(BATCH, net.num_gates, generator=torch.Generator().manual_seed(1))
    options: Any = {"exploration": exploration, "temperature": temperature}
    episode = rollout(net, count(net, SIZE), images, labels, choose_by(uniform), **options)
    # The gates saw what the network sees on the same route.
    policy = (net(images, episode.actions).gate_logits.double() / temperature).sigmoid()
    executing = exploration + (1 - 2 * exploration) * policy
    assert torch.equal(episode.actions, (uniform < executing).float())
    expected = torch.where(episode.actions == 1, executing, 1 - executing).log()
    torch.testing.assert_close(episode.log_probs.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["masked", "executed"])
def test_what_is_spent_and_lost_on_a_route(mode: Mode) -> None:
    net = three_gates()
    images, labels = labelled(BATCH)
    cost = count(net, SIZE)
    uniform = torch.rand(BATCH, net.num_gates, generator=torch.Generator().manual_seed(2))
    episode = rollout(net, cost, images, labels, choose_by(uniform), mode=mode, exploration=0.1)
    assert episode.spent_macs.tolist() == [cost.expected_macs(route) for route in episode.actions.tolist()]
    routed = net(images, episode.actions)
    losses = torch.nn.functional.cross_entropy(routed.logits, labels, reduction="none")
    torch.testing.assert_close(episode.cross_entropy, losses, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(episode.gate_logits, routed.gate_logits, rtol=1e-4, atol=1e-4)
    assert episode.cross_entropy.requires_grad and not episode.spent_macs.requires_grad


@pytest.mark.parametrize("logit", [-60.0, 60.0])
def test_saturated_gates_have_finite_gradients(logit: float) -> None:
    net = three_gates()
    torch.nn.init.zeros_(net.gate.score.weight)
    torch.nn.init.constant_(net.gate.score.bias, logit)
    images, labels = labelled(2)
    forced = torch.tensor([[0.0] * 3, [1.0] * 3])  # either action, whatever its probability
    for exploration in (0.0, 0.1):
        episode = rollout(net, count(net, SIZE), images, labels, choose_by(forced), exploration=exploration)
        net.zero_grad()
        episode.log_probs.sum().backward()
        gradient = net.gate.score.bias.grad
        assert gradient is not None and bool(gradient.isfinite().all())
        assert bool(episode.log_probs.isfinite().all())


def test_the_gates_learn_from_log_probabilities_only_and_the_backbone_not_at_all() -> None:
    net = three_gates()
    images, labels = labelled(BATCH)
    uniform = torch.rand(BATCH, net.num_gates, generator=torch.Generator().manual_seed(3))
    episode = rollout(net, count(net, SIZE), images, labels, choose_by(uniform), exploration=0.1)
    episode.log_probs.sum().backward()
    assert all(p.grad is None for p in net.backbone.parameters())
    assert all(p.grad is not None for p in net.gate.parameters())


@pytest.mark.parametrize("gate", [0, 1, 2, 3])
def test_flipping_inverts_one_greedy_decision(gate: int) -> None:
    net = three_gates()
    images, labels = labelled(BATCH)
    flipped = torch.full((BATCH,), gate)
    flipped[::2] = net.num_gates  # none
    episode = rollout(net, count(net, SIZE), images, labels, choose_flipping(flipped))
    wanted = net(images).decisions
    torch.testing.assert_close(episode.actions[::2], wanted[::2])
    torch.testing.assert_close(episode.actions[1::2, :gate], wanted[1::2, :gate])
    logits = net(images, episode.actions).gate_logits
    changed = (episode.actions != (logits > 0)).nonzero().tolist()
    assert changed == ([] if gate == net.num_gates else [[image, gate] for image in range(1, BATCH, 2)])


@pytest.mark.parametrize("mode", ["masked", "executed"])
def test_without_backbone_gradients_the_gates_learn_the_same(mode: Mode) -> None:
    net = three_gates()
    images, labels = labelled(BATCH)
    uniform = torch.rand(BATCH, net.num_gates, generator=torch.Generator().manual_seed(4))
    found = []
    for backbone_grad in (True, False):
        choose = choose_by(uniform)
        episode = rollout(net, count(net, SIZE), images, labels, choose, mode=mode, backbone_grad=backbone_grad)
        assert episode.cross_entropy.requires_grad == backbone_grad
        net.zero_grad()
        episode.log_probs.sum().backward()
        found.append(torch.cat([p.grad.flatten() for p in net.gate.parameters() if p.grad is not None]))
    torch.testing.assert_close(*found)
    assert bool(found[0].any())
