"""Rollouts of a network's own gates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridprune.measure.cost import NetworkCost
from hybridprune.models.gates import greedy
from hybridprune.models.routed import Mode, RoutedNetwork
from hybridprune.routing.episode import Episode


@dataclass(frozen=True)
class Rollout:
    """A rollout: what happened to B images at N gates."""

    actions: Tensor
    """``[B, N]`` in {0, 1}"""
    gate_logits: Tensor
    """``[B, N]``, differentiable in the gates"""
    execute: Tensor
    """``[B, N]``: the policy's probability of executing, differentiable in the gates"""
    log_probs: Tensor
    """``[B, N]``: ``log pi(a_i)``, differentiable in the gates"""
    cross_entropy: Tensor
    """``[B]``, differentiable in the backbone if that was asked for"""
    logits: Tensor
    """``[B, classes]``"""
    spent_macs: Tensor
    """``[B]``, whole numbers"""


Choose = Callable[[int, Tensor, Tensor], Tensor]
"""``choose(gate, logit [B], execute [B])`` gives the actions ``[B]``; ``execute`` is the probability of a 1."""


def choose_greedily(gate: int, logit: Tensor, execute: Tensor) -> Tensor:
    """Decide as inference does: execute where the gate's own probability is above 0.5."""
    return greedy(logit)


def choose_by(uniform: Tensor) -> Choose:
    """Sample with the given numbers ``[B, N]`` in [0, 1)."""
    return lambda gate, logit, execute: (uniform[:, gate] < execute).to(logit.dtype)


def choose_flipping(flipped: Tensor) -> Choose:
    """Greedy but for one gate per image, ``[B]``, whose decision is inverted; N and more mean none."""
    return lambda gate, logit, execute: torch.where(flipped == gate, 1 - greedy(logit), greedy(logit))


def choose_branching(actions: Tensor, branch: Tensor, uniform: Tensor) -> Choose:
    """Follow the route ``actions [B, N]`` before gate ``branch [B]``, do the opposite there, and sample from there on.

    ``uniform [B, N]`` in [0, 1) is what is sampled with, as in `choose_by`.
    """
    sample = choose_by(uniform)

    def choose(gate: int, logit: Tensor, execute: Tensor) -> Tensor:
        behind = torch.where(branch == gate, 1 - actions[:, gate], sample(gate, logit, execute))
        return torch.where(branch > gate, actions[:, gate], behind)

    return choose


def rollout(
    net: RoutedNetwork,
    cost: NetworkCost,
    images: Tensor,
    labels: Tensor,
    choose: Choose,
    *,
    mode: Mode = "executed",
    backbone_grad: bool = True,
    exploration: float = 0.0,
    temperature: float = 1.0,
) -> Rollout:
    """Route ``[B, 3, H, W]`` images through the network, the actions being chosen from the gates' logits.

    The policy is ``exploration + (1 - 2 exploration) sigmoid(logit / temperature)``: both keep a saturated gate
    exploring, and unlike clipping they keep its gradient.
    """
    episode = Episode(net, cost, images, mode=mode, backbone_grad=backbone_grad)
    actions, gate_logits, executes, log_probs = [], [], [], []
    while not episode.done:
        logit = episode.gate_logit()
        execute = exploration + (1 - 2 * exploration) * (logit / temperature).sigmoid()
        # The complement is computed on its own: 1 - execute would lose it where execute rounds to 1.
        skip = exploration + (1 - 2 * exploration) * (-logit / temperature).sigmoid()
        action = choose(episode.gate, logit.detach(), execute.detach())
        episode.step(action)
        actions.append(action)
        gate_logits.append(logit)
        executes.append(execute)
        log_probs.append(torch.where(action > 0, execute, skip).log())
    assert episode.logits is not None
    cross_entropy = F.cross_entropy(episode.logits.float(), labels, reduction="none")
    return Rollout(
        torch.stack(actions, 1),
        torch.stack(gate_logits, 1),
        torch.stack(executes, 1),
        torch.stack(log_probs, 1),
        cross_entropy,
        episode.logits,
        episode.spent_macs,
    )
