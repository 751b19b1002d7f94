"""Regularisers that keep gates from settling too early: an entropy bonus and bounds on each block's execution rate."""

from __future__ import annotations

import torch
from torch import Tensor


def entropy(execute: Tensor) -> Tensor:
    """Mean over images of the sum over gates of the policy's entropy in nats (0-d), from probabilities ``[B, N]``."""
    # Away from 0, where the gradient of p log p is infinite: a saturated gate would make NaN of it.
    both = torch.stack([execute, 1 - execute]).clamp(min=torch.finfo(execute.dtype).tiny)
    return -(both * both.log()).sum(0).sum(1).mean()


def outside_bounds(rates: Tensor, bound: float) -> Tensor:
    """Sum over blocks of the squared distance of their mean rates ``[N]`` from ``[bound, 1 - bound]`` (0-d).

    A block whose rate is kept from 0 and 1 leaves its gate one thing to choose: which images.
    """
    assert 0 <= bound <= 0.5, bound
    assert rates.ndim == 1, rates.shape
    return ((bound - rates).clamp(min=0).square() + (rates - (1 - bound)).clamp(min=0).square()).sum()
