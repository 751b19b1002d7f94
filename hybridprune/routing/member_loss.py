"""The loss of a cascade's members, each weighted by what it will keep. Pure.

A frozen policy says how likely an image is to stop behind each member: that is the member's weight for it, as in
meta-learned sample weighting (Han et al. 2022, "Learning to Weight Samples for Dynamic Early-Exiting Networks", whose
weights a network predicts). So a small member learns what it is to keep, the last one what it is to get.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridprune.routing.stopping import stop_log_probs


def stop_weights(gate_logits: Tensor, floor: float) -> Tensor:
    """Each member's weights for B images, ``[B, K]``, from logits of going on, ``[B, K - 1]``.

    The probability P(k) to stop behind member k, mixed with an even choice of members: ``(1 - floor) P(k) + floor / K``
    with a floor in [0, 1], so that no image is without weight for any member. An image's weights add up to 1.
    """
    stops = stop_log_probs(gate_logits).exp()
    return (1 - floor) * stops + floor / stops.shape[1]


def member_losses(logits: Tensor, labels: Tensor, taught: Tensor, kd_shares: Tensor, temperature: float) -> Tensor:
    """The loss of each of B images by each member, ``[B, K]``, from the members' own logits ``[K, B, classes]``.

    With member k's share d of distillation (``kd_shares [K]``) and the teacher's logits ``taught [B, classes]``::

        (1 - d) cross-entropy + d temperature^2 KL(teacher || member),     both softened by the temperature
    """
    members, images, classes = logits.shape
    flat = logits.float().reshape(members * images, classes)
    own = F.cross_entropy(flat, labels.repeat(members), reduction="none")
    q, p = ((each.float() / temperature).log_softmax(-1) for each in (logits, taught))
    distance = temperature**2 * (p.exp() * (p - q)).sum(-1)
    shares = kd_shares.unsqueeze(1)
    return ((1 - shares) * own.reshape(members, images) + shares * distance).T


def weighted_loss(losses: Tensor, weights: Tensor, mean_weights: Tensor) -> Tensor:
    """The sum over members of the weighted mean of their images' losses (0-d), all ``[B, K]``.

    ``mean_weights [K]`` are the means of the weights over all images of a step: however few images a member will get,
    it learns at the common rate.
    """
    assert losses.shape == weights.shape and mean_weights.shape == losses.shape[1:], (losses.shape, weights.shape)
    return (losses * (weights / mean_weights)).mean(0).sum()


def kd_shares_of(members: int, small: float, large: float) -> Tensor:
    """The share of distillation in the loss of each member, ``[K]``: ``large`` for the last one, else ``small``."""
    return torch.tensor([small] * (members - 1) + [large])
