"""The price of FLOPs (``alpha``), fixed or adapted until a budget is met."""

from __future__ import annotations

import math
from typing import Any

TOLERANCE = 0.02
"""Largest relative distance of the expected FLOPs from a budget that counts as met."""


class Price:
    """Nats of cross-entropy for the whole network's FLOPs.

    With a ``target`` (share of the backbone's FLOPs, gates counted) it is a Lagrange multiplier, raised while routes
    cost more and lowered while they cost less: dual ascent, in the logarithm, so that it stays positive and one step
    size serves every scale. It is held while validation is within 2 % of the target.
    """

    def __init__(self, value: float, target: float | None, step: float) -> None:
        assert target is None or (value > 0 and target > 0)
        self.value = value
        self.target = target
        self._step = step
        self.held = target is None

    def spend(self, share: float) -> None:
        """A batch's routes cost this share of the network's FLOPs."""
        if not self.held and self.target is not None:
            excess = max(-1.0, min(1.0, share / self.target - 1))
            self.value *= math.exp(self._step * excess)

    def state_dict(self) -> dict[str, Any]:
        """What must survive a resume."""
        return {"value": self.value, "held": self.held}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of ``state_dict``."""
        self.value, self.held = state["value"], state["held"]

    def validated(self, share: float) -> None:
        """Routes cost this share on the validation split."""
        if self.target is not None:
            self.held = met(share, self.target)


def met(share: float, target: float) -> bool:
    """Whether expected FLOPs are those of the budget, within 2 %."""
    return abs(share / target - 1) <= TOLERANCE
