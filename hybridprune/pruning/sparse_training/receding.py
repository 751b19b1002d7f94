"""The regulariser under which the importances of weak channels recede (Suteu & Guo 2022, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridprune.engine.pressure import Drive
from hybridprune.models.sigmoid_norm import SigmoidBatchNorm2d

LR_FACTOR = 10.0
"""Learning rate of gamma over that of the other parameters: a sigmoid has small derivatives."""


class Setting(NamedTuple):
    """The numbers of the regulariser."""

    weight: float
    b: float

    @staticmethod
    def published(residual: bool) -> Setting:
        """The numbers behind the published figures: of VGG-16, or of ResNet-56 for networks with residual sums."""
        return Setting(1e-4, 0.0) if residual else Setting(1e-3, 3.0)

    def or_given(self, weight: float | None, b: float | None) -> Setting:
        """A setting of the given numbers, with its own where one is None."""
        return Setting(self.weight if weight is None else weight, self.b if b is None else b)


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


class RecedingPressure:
    """The gradient of ``weight x penalty`` on every ``gamma [C]``."""

    def __init__(self, gammas: Sequence[nn.Parameter], weight: float, b: float) -> None:
        self._gammas, self._weight, self._b = gammas, weight, b

    @torch.no_grad()
    def add_gradients(self, done: float) -> None:
        """Add ``weight x penalty_gradient(gamma)`` to each gradient ``[C]``, in every step alike."""
        del done
        for gamma in self._gammas:
            push = self._weight * penalty_gradient(gamma, self._b)
            gamma.grad = push if gamma.grad is None else gamma.grad.add_(push)

    def state_dict(self) -> dict[str, Any]:
        """An empty state: the pressure has no memory."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """An empty state, which there is nothing to load of."""
        del state


def receding_drive(model: nn.Module, weight: float, b: float) -> Drive:
    """Every `SigmoidBatchNorm2d` of ``model`` under this pressure: faster by `LR_FACTOR`, and without weight decay.

    With a weight of 0 that is only how these are trained.
    """
    gammas = {
        f"{name}.gamma": module.gamma
        for name, module in model.named_modules()
        if isinstance(module, SigmoidBatchNorm2d)
    }
    pressed = list(gammas.values()) if weight else []
    return Drive(RecedingPressure(pressed, weight, b), dict.fromkeys(gammas, LR_FACTOR), frozenset(gammas))
