"""The regulariser under which the importances of weak channels recede (Suteu & Guo 2022, section 3.2; pure)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def penalty(gamma: Tensor, b: float) -> Tensor:
    """``sum s (1 - ln s)`` with ``s = sigmoid(gamma + b)``, 0-d; ``gamma`` of any shape.

    It rises from 0 at ``gamma = -inf`` to 1 a channel and is flat for the strong ones: the larger the shift ``b``, the
    weaker a channel must be to be pushed.
    """
    log_s = F.logsigmoid(gamma + b)
    return (log_s.exp() * (1 - log_s)).sum()


def penalty_gradient(gamma: Tensor, b: float) -> Tensor:
    """The derivative ``-s (1 - s) ln s`` of `penalty`, in the shape of ``gamma``: positive, at most 0.26."""
    shifted = gamma + b
    return -shifted.sigmoid() * (-shifted).sigmoid() * F.logsigmoid(shifted)
