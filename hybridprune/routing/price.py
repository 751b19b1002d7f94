"""The price of FLOPs (``alpha``), fixed or adapted until a budget is met."""

from __future__ import annotations

import math
from typing import Any

TOLERANCE = 0.02
"""Largest relative distance of the expected FLOPs from a budget that counts as met."""
DAMPING = 2.0
"""Logarithm of the factor by which an excess of 100 % raises the price at once, for as long as it lasts."""
MOMENTUM = 0.9
"""Of the running mean of the excess, which keeps a batch's noise out of the price."""


class Price:
    """Nats of cross-entropy for the whole network's FLOPs.

    With a ``target`` (share of the backbone's FLOPs, gates counted) it is a Lagrange multiplier, raised while routes
    cost more and lowered while they cost less: dual ascent, in the logarithm, so that it stays positive and one step
    size serves every scale. Gates answer a price with a delay, so dual ascent alone overshoots and swings; a term
    proportional to the excess damps it (PID Lagrangian, Stooke et al. 2020, section 4; here P and I). It is held while
    validation is within 2 % of the target.
    """

    def __init__(self, value: float, target: float | None, step: float) -> None:
        assert target is None or (value > 0 and target > 0)
        self.target = target
        self.held = target is None
        self._step = step
        self._base = value
        self._excess = 0.0
        self._tried = False

    @property
    def value(self) -> float:
        """The price now."""
        return self._base * math.exp(DAMPING * self._excess)

    def spend(self, share: float) -> None:
        """A batch's routes cost this share of the network's FLOPs."""
        if not self.held and self.target is not None:
            excess = max(-1.0, min(1.0, share / self.target - 1))
            # From 0, not from the first excess: the price starts where it was set.
            self._tried = True
            self._excess = MOMENTUM * self._excess + (1 - MOMENTUM) * excess
            self._base *= math.exp(self._step * excess)

    def state_dict(self) -> dict[str, Any]:
        """What must survive a resume."""
        return {"base": self._base, "excess": self._excess, "held": self.held, "tried": self._tried}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of ``state_dict``."""
        self._base, self._excess, self.held = state["base"], state["excess"], state["held"]
        self._tried = state["tried"]

    def validated(self, share: float) -> None:
        """Routes cost this share on the validation split. Before any training that says nothing of the price."""
        if self.target is not None and self._tried:
            self.held = met(share, self.target)


def met(share: float, target: float) -> bool:
    """Whether expected FLOPs are those of the budget, within 2 %."""
    return abs(share / target - 1) <= TOLERANCE
