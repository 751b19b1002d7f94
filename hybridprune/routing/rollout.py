"""Rollouts of a network's own gates in the routing environment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hybridprune.models.gates import Hidden, greedy
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.routing.env import GateRoutingVectorEnv


@dataclass(frozen=True)
class Rollout:
    """What happened to B images at N gates."""

    actions: Tensor
    """``[B, N]`` in {0, 1}"""
    log_probs: Tensor
    """``[B, N]``: ``log pi(a_i)``, differentiable in the gates"""
    skip_rewards: Tensor
    """``[B, N]``: ``alpha w_j (1 - a_j)``"""
    cross_entropy: Tensor
    """``[B]``, differentiable in the backbone"""
    logits: Tensor
    """``[B, classes]``"""


Choose = Callable[[int, Tensor, Tensor], Tensor]
"""``choose(gate, logit [B], execute [B])`` gives the actions ``[B]``; ``execute`` is the probability of a 1."""


def choose_greedily(gate: int, logit: Tensor, execute: Tensor) -> Tensor:
    """What inference does: execute where the gate's own probability is above 0.5."""
    return greedy(logit)


def choose_by(uniform: Tensor) -> Choose:
    """Sample with the given numbers ``[B, N]`` in [0, 1)."""
    return lambda gate, logit, execute: (uniform[:, gate] < execute).to(logit.dtype)


def choose_flipping(flipped: Tensor) -> Choose:
    """Greedy but for one gate per image, ``[B]``, whose decision is inverted; N and more mean none."""
    return lambda gate, logit, execute: torch.where(flipped == gate, 1 - greedy(logit), greedy(logit))


def rollout(
    env: GateRoutingVectorEnv,
    net: GatedNetwork,
    images: Tensor,
    labels: Tensor,
    choose: Choose,
    *,
    exploration: float = 0.0,
    temperature: float = 1.0,
) -> Rollout:
    """Route ``[B, 3, H, W]`` images through the environment, the actions being chosen from the gates' logits.

    The policy is ``exploration + (1 - 2 exploration) sigmoid(logit / temperature)``: both keep a saturated gate
    exploring, and unlike clipping they keep its gradient.
    """
    channels = net.backbone.block_channels
    observation, _ = env.reset(options={"images": images, "labels": labels})
    hidden: Hidden | None = None
    actions, log_probs, rewards, info = [], [], [], {}
    for i in range(net.num_gates):
        logit, hidden = net.gate(i, observation[:, : channels[i]], hidden)
        execute = exploration + (1 - 2 * exploration) * (logit / temperature).sigmoid()
        # The complement is computed on its own: 1 - execute would lose it where execute rounds to 1.
        skip = exploration + (1 - 2 * exploration) * (-logit / temperature).sigmoid()
        action = choose(i, logit.detach(), execute.detach())
        observation, reward, _, _, info = env.step(action)
        actions.append(action)
        log_probs.append(torch.where(action > 0, execute, skip).log())
        rewards.append(reward)
    cross_entropy = info["cross_entropy"]
    rewards[-1] = rewards[-1] + cross_entropy.detach()  # the environment's last reward holds the terminal one as well
    return Rollout(
        torch.stack(actions, 1), torch.stack(log_probs, 1), torch.stack(rewards, 1), cross_entropy, info["logits"]
    )
