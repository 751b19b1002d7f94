"""The energies by which the inputs of a group, or the filters of a layer, are ranked (pure; Park et al. 2023)."""

from __future__ import annotations

import torch
from torch import Tensor


def cumulative_shares(energies: Tensor) -> tuple[Tensor, Tensor]:
    """The share of the whole that each unit's energy and all smaller ones have, and the units, both largest first.

    Units go while their share is below a threshold beta, so the smallest beta that meets a budget is where one ranking
    of all layers' shares ends. Of no energy at all the shares are 0, but for the last unit's.

    Args:
        energies: ``[n]``, at least 0.

    Returns:
        Shares ``[n]`` in double precision, descending to that of the smallest, and the units' numbers ``[n]``.
    """
    ascending, order = energies.double().cpu().sort(stable=True)
    total = ascending.sum()
    shares = ascending.cumsum(0) / total if float(total) > 0 else torch.zeros_like(ascending)
    shares[-1] = 1.0  # whatever the rounding
    return shares.cummax(0).values.flip(0), order.flip(0)


def input_energies(weight: Tensor, group: Tensor) -> Tensor:
    """``sum of W[o, i]^2`` over the filters of a group, ``[O]`` bool, and the kernel, of ``[O, I, ...]``: ``[I]``."""
    return weight.detach()[group.to(weight.device)].double().square().flatten(2).sum((0, 2))


def filter_energies(weight: Tensor) -> Tensor:
    """``sum of W[o]^2`` over all inputs and the kernel: ``[O]``."""
    return weight.detach().double().square().flatten(1).sum(1)
