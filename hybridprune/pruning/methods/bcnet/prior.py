"""The widths from which a search starts: by their losses in training, under a penalty on FLOPs (pure)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from hybridprune.pruning.sparse_training.width_macs import WidthMacs

PENALTY = 100.0
"""A percent of the FLOPs too many costs as much as a hundredth of a group's range of losses."""
STEPS, LR = 300, 0.05
"""Of Adam. It stops before the best mixture of networks, which is one of two: a search needs others as well."""


def mean_losses(record: Tensor) -> Tensor:
    """The mean ``[widths]`` of the losses on record ``[widths, smallest]``, infinite where there is none.

    A width that was never drawn has the largest mean of the others.
    """
    known = record.isfinite()
    means = torch.where(known, record, 0.0).double().sum(1) / known.sum(1)
    return torch.where(known.any(1), means, means.nan_to_num(-torch.inf).max())


def expected_macs(macs: WidthMacs, mean: Tensor, variance: Tensor) -> Tensor:
    """The expectation (0-d) of the MACs at independent widths of ``mean [G]`` and ``variance [G]``, exactly.

    A layer has ``macs C_in C_out`` with both linear in the widths, so ``E = E[C_in] E[C_out] + Cov(C_in, C_out)``, and
    the covariance is of the groups that it both reads and writes.
    """
    inputs = macs.outside[0] + macs.inputs @ mean
    outputs = macs.outside[1] + macs.outputs @ mean
    return (macs.per_pair * (inputs * outputs + (macs.inputs * macs.outputs) @ variance)).sum() + macs.other


def width_prior(losses: Sequence[Tensor], sizes: Sequence[Tensor], macs: WidthMacs, target: float) -> list[Tensor]:
    """The probability ``[widths]`` of each width of each group: few losses at an expectation of ``target`` MACs.

    It descends ``sum over groups of sum_c p_c E_c / r + 100 (E[MACs] / target - 1)^2``, ``p`` a softmax of logits of 0
    at first, and ``r`` the mean range of a group's losses.

    Args:
        losses: ``E [widths]`` of each group.
        sizes: channels ``[widths]`` of the same widths.
    """
    with torch.enable_grad():
        open_ = pad_sequence([torch.ones_like(each, dtype=torch.bool) for each in losses], batch_first=True)
        worth = pad_sequence([each.double() for each in losses], batch_first=True)
        channels = pad_sequence([each.double() for each in sizes], batch_first=True)
        spread = float(torch.stack([each.max() - each.min() for each in losses]).double().mean()) or 1.0
        logits = torch.zeros_like(worth, requires_grad=True)
        adam = torch.optim.Adam([logits], lr=LR)

        def shares() -> Tensor:
            return torch.where(open_, logits, -torch.inf).softmax(1)

        for _ in range(STEPS):
            p = shares()
            mean = (p * channels).sum(1)
            variance = (p * channels.square()).sum(1) - mean.square()
            excess = expected_macs(macs, mean, variance) / target - 1
            loss = (p * worth).sum() / spread + PENALTY * excess.square()
            (logits.grad,) = torch.autograd.grad(loss, logits)
            adam.step()
    return [row[: len(own)] for row, own in zip(shares().detach(), losses, strict=True)]
