"""The regulariser of grouped filters, and its gradient (pure; Park et al. 2023).

With filters ``W [O, I, K]`` (K: kernel offsets) and the shares ``p [G, O]`` of each filter in each group:

    R = sum_g s(p_g) sum_i n_gi        n_gi = |p_g * W[:, i]|_2        s(p_g) = (sum_o sqrt p_go)^2

A hard assignment makes ``s`` the square of the number of filters, and R a group lasso of the inputs of each group.
"""

from __future__ import annotations

import torch
from torch import Tensor

PUBLISHED_INPUT = 16 * 32 * 32
"""Elements of the input of CIFAR ResNets' first blocks, whose layers get no larger weight for what they read."""
TINY = 1e-16
"""Added to squared norms: at 0 a norm has no gradient."""
LEAST = 1e-30
"""Of a share, whose square root has no gradient at 0."""


def scale_of(input_elements: int, kernel: float, groups: int, filters: int) -> float:
    """``kappa = sqrt(input elements / (16 32 32)) k (G / O)^1.5``, which makes layers comparable.

    ``kernel`` is the side of the kernel; of one that is not square the root of its area (own).
    """
    return (input_elements / PUBLISHED_INPUT) ** 0.5 * kernel * (groups / filters) ** 1.5


def penalty(weight: Tensor, shares: Tensor) -> Tensor:
    """``R`` (0-d) of filters ``[O, I, K]`` in groups ``[G, O]``."""
    return (_spread(shares) * _norms(weight, shares).sum(1)).sum()


def gradient(weight: Tensor, shares: Tensor) -> Tensor:
    """``dR/dW [O, I, K]``: ``sum_g s(p_g) p_go^2 W[o, i] / n_gi``."""
    pull = shares.square().T @ (_spread(shares)[:, None] / _norms(weight, shares))
    return pull[..., None] * weight


def _spread(shares: Tensor) -> Tensor:
    """``s [G]``"""
    return shares.clamp(min=LEAST).sqrt().sum(1).square()


def _norms(weight: Tensor, shares: Tensor) -> Tensor:
    """``n [G, I]``"""
    return (shares.square() @ weight.square().sum(2) + TINY).sqrt()


def soft_shares(logits: Tensor, uniform: Tensor, temperature: float) -> Tensor:
    """Gumbel-softmax over groups: ``p = softmax((logits + noise) / temperature)``, ``[G, O]`` all.

    The noise is ``-log(-log u)`` of uniform numbers in [0, 1).
    """
    noise = -torch.log(-torch.log(uniform.clamp(LEAST, 1 - 1e-7)))
    return torch.softmax((logits + noise) / temperature, 0)


def hard_shares(group: Tensor, groups: int) -> Tensor:
    """The shares ``[G, O]`` of filters that are in one group each, ``[O]``."""
    return torch.nn.functional.one_hot(group, groups).T.float()
