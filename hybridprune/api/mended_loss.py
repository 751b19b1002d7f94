# pyright: strict
"""The remedy where the loss of a user's first batch fails."""

from __future__ import annotations

from hybridprune.curvature import Likelihood
from hybridprune.curvature.likelihood import UserLoss

_NAMES = {
    "CrossEntropyLoss": "cross_entropy",
    "cross_entropy": "cross_entropy",
    "BCEWithLogitsLoss": "bce",
    "binary_cross_entropy_with_logits": "bce",
    "MSELoss": "mse",
    "mse_loss": "mse",
}
"""Losses of torch, and the names by which `prune` knows them."""


def mended_loss(likelihood: Likelihood) -> str:
    """The remedy, which says what to give as ``loss``: torch's losses take targets, not the batch that they are in."""
    remedy = "mend loss=, or give forward= that returns what it takes, in eval mode, too"
    if not isinstance(likelihood, UserLoss):
        return remedy
    function = likelihood.function
    named = _NAMES.get(getattr(function, "__name__", type(function).__name__))
    named = f"give loss={named!r}, or " if named else ""
    return (
        f"loss= is a function of (output, batch): {named}give loss=lambda output, batch: f(output, batch[1]); {remedy}"
    )
