"""The price of FLOPs (``alpha``), fixed or adapted until a budget is met."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

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
    validation is within 2 % of the target. After a batch whose routes cost the share f of the target's f*, all 0-d::

        e     = clip(f / f* - 1, -1, 1)     the excess
        m     = 0.9 m + 0.1 e               its running mean
        base  = base exp(step e)
        alpha = base exp(2 m)               the price

    A budget is an upper bound, and its multiplier is never negative: a price that falls stops charging for FLOPs, it
    does not pay for them. Gates that would spend less than the target if FLOPs cost nothing go on spending less.
    """

    def __init__(self, value: float, target: float | None, step: float, device: torch.device) -> None:
        """Start at ``value``. The price lives on ``device``, so that a step of training need not wait to read it."""
        assert target is None or (value > 0 and target > 0)
        self.target = target
        self.held = target is None
        self._step = step
        options: dict[str, Any] = {"dtype": torch.float64, "device": device}
        self._base = torch.tensor(value, **options)
        self._excess = torch.tensor(0.0, **options)
        self._tried = False

    @property
    def value(self) -> Tensor:
        """The price now (0-d)."""
        return self._base * (DAMPING * self._excess).exp()

    def spend(self, share: Tensor) -> None:
        """A batch's routes cost this share (0-d, on the price's device) of the network's FLOPs."""
        assert share.ndim == 0, share.shape
        if not self.held and self.target is not None:
            excess = (share.detach().to(self._base.dtype) / self.target - 1).clamp(-1, 1)
            # From 0, not from the first excess: the price starts where it was set.
            self._tried = True
            self._excess = MOMENTUM * self._excess + (1 - MOMENTUM) * excess
            self._base = self._base * (self._step * excess).exp()

    def state_dict(self) -> dict[str, Any]:
        """The state that must survive a resume."""
        return {
            "base": float(self._base),
            "excess": float(self._excess),
            "held": self.held,
            "tried": self._tried,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of ``state_dict``."""
        self._base = torch.full_like(self._base, state["base"])
        self._excess = torch.full_like(self._excess, state["excess"])
        self.held, self._tried = state["held"], state["tried"]

    def validated(self, share: float) -> None:
        """Routes cost this share on the validation split. Before any training that says nothing of the price."""
        if self.target is not None and self._tried:
            self.held = met(share, self.target)


def met(share: float, target: float) -> bool:
    """Whether expected FLOPs are those of the budget, within 2 %."""
    return abs(share / target - 1) <= TOLERANCE
