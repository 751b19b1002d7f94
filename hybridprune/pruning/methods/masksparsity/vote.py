"""Votes of the BatchNorms of a group on the channels that go, and their agreement (pure; Jiang et al. 2022)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def magnitude(gammas: Tensor) -> Tensor:
    """``|gamma|`` of scales ``[norms, channels]``: a BatchNorm wants to lose what is at most a threshold."""
    return gammas.double().abs()


DEAD = 1e-3
"""A BatchNorm whose largest scale is below this wants to lose all channels but that one, by the energy rule."""


def energy_share(gammas: Tensor) -> Tensor:
    """The share of a BatchNorm's ``gamma^2`` in its channels up to each one, smallest first; ``[norms, channels]``.

    A BatchNorm then wants to lose those smallest channels that hold at most a threshold of its energy together. Where
    all scales are below `DEAD`, all shares but that of the largest scale are 0, as in the authors' code.
    """
    squares = gammas.double().square()
    ascending, order = squares.sort(dim=1, stable=True)
    # The largest is the whole, whatever the rounding, and so is everything where there is nothing.
    shares = ascending.cumsum(1) / ascending.sum(1, keepdim=True)
    shares[gammas.abs().amax(1) < DEAD, :-1] = 0.0
    return torch.empty_like(squares).scatter_(1, order, shares.nan_to_num(0.0))


RULES: Mapping[str, Callable[[Tensor], Tensor]] = {"magnitude": magnitude, "energy": energy_share}
"""By name: a level ``[norms, channels]``, and what is at most the threshold is to go."""


def wishes(levels: Tensor, threshold: float) -> Tensor:
    """The channels that each BatchNorm wants to lose, ``[norms, channels]``: levels up to the threshold, never all."""
    wanted = levels <= threshold
    best = levels.argmax(1)
    wanted[torch.arange(len(levels)), best] = False
    return wanted


def vote(wanted: Tensor) -> Tensor:
    """The channels ``[channels]`` that a group loses, from what each of its BatchNorms wants, ``[norms, channels]``.

    They are those that at least i BatchNorms want to lose, i being the largest number for which these are as many as
    the BatchNorm that wants least loses.
    """
    assert wanted.ndim == 2 and wanted.dtype == torch.bool
    votes, fewest = wanted.sum(0), int(wanted.sum(1).min())
    return next(agreed for i in range(len(wanted), 0, -1) if int((agreed := votes >= i).sum()) >= fewest)
