"""The share of a layer's nuclear norm that its masked outputs take away (pure)."""

from __future__ import annotations

import torch
from torch import Tensor


def nuclear_gap(weight: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """``| ||W||_* - ||m W||_* |``, and its gradient with respect to the mask m of the rows of W.

    ``sum_r s_r u_ir^2``, of the singular values s and left singular vectors u of ``m W``, is what row i has of its
    nuclear norm: the diagonal of ``(m W W^T m)^(1/2)``. Masking can only lower the norm, so that is minus the gradient
    where i is kept. The gradient is 0 on masked rows, where the derivative of the SVD does not exist, and, as that of
    ``|x|`` at 0, on all rows if none is masked.

    Args:
        weight: ``[C_out, ...]``, flattened to ``[C_out, D]``.
        kept: ``[C_out]``, bool: where m is 1.

    Returns:
        The gap (0-d) and the gradient ``[C_out]``, in double precision.
    """
    assert kept.shape == weight.shape[:1], (kept.shape, weight.shape)
    rows = weight.detach().flatten(1).double()
    mask = kept.double()
    gram = rows @ rows.T
    whole = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt().sum()
    values, vectors = torch.linalg.eigh(gram * mask * mask[:, None])
    shares = (vectors.square() @ values.clamp(min=0).sqrt()) * mask
    none_masked = kept.all()
    gap = torch.where(none_masked, 0.0, (whole - shares.sum()).abs())
    return gap, torch.where(none_masked, 0.0, -shares)
