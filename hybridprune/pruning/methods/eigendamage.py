"""EigenDamage: directions of the Kronecker-factored eigenbasis of the Fisher (Wang et al. 2019, section 4).

With the eigenvectors Q of the factors, ``W* = Q_g^T W Q_a``, entry ij is worth ``1/2 lambda_ij W*_ij^2``, and a
direction the sum of its row or column.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hybridprune.curvature import LayerFactors, SecondMoments, eigenbasis
from hybridprune.pruning.directions.decomposition import Decomposition
from hybridprune.pruning.method import DirectionMethod


def decompose(weight: Tensor, factors: LayerFactors, moments: SecondMoments | None, damping: float) -> Decomposition:
    """The weight ``[C_out, C_in, k, k]`` in its factors' eigenbases, and the importance ``[C_out, C_in]`` of pairs.

    With ``W* = Q_g^T W Q_a (Q_k)`` an entry is worth ``1/2 lambda W*^2``, a pair of directions the sum over its
    offsets, and a direction the sum of its pairs. ``lambda`` is ``S lambda_g lambda_a (lambda_k)``, or its exact second
    moment where ``moments`` (in this basis) are given (section 4; the correction is that of EKFAC, George et al. 2018).
    Nothing is inverted, so ``damping`` plays no part.
    """
    del damping
    basis = eigenbasis(factors.input_factor, factors.gradient_factor, factors.offset_factor)
    rotated = torch.einsum("op,oikl,iq->pqkl", basis.q_out, weight.double(), basis.q_in)
    scored = rotated if basis.q_offset is None else (rotated.flatten(2) @ basis.q_offset).view_as(rotated)
    if moments is None:
        curvature = (factors.positions * basis.lambda_out[:, None] * basis.lambda_in)[:, :, None]
        if basis.lambda_offset is not None:
            curvature = curvature * basis.lambda_offset
    else:
        entries = moments.entries
        assert entries is not None and entries.shape in (weight.shape, weight.shape[:2])  # of a linear layer
        curvature = entries.double().view(*weight.shape[:2], -1)
    importance = (0.5 * curvature * scored.flatten(2).square()).sum(2)
    out_order = importance.sum(1).argsort(descending=True, stable=True)
    in_order = importance.sum(0).argsort(descending=True, stable=True)
    return Decomposition(
        out_basis=basis.q_out[:, out_order],
        core=rotated[out_order][:, in_order],
        in_basis=basis.q_in[:, in_order],
        out_scale=torch.eye(len(out_order), dtype=torch.float64, device=weight.device),
        in_scale=torch.eye(len(in_order), dtype=torch.float64, device=weight.device),
        importance=importance[out_order][:, in_order].cpu(),
    )


METHOD = DirectionMethod(decompose, allocation="importance", moments=lambda corrected: "entries" if corrected else None)
