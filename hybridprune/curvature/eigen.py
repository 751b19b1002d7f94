"""Eigen-maths of the Kronecker factors (pure, in double precision)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class EigenBasis:
    """Eigenbases of one layer's two factors; columns are eigenvectors, eigenvalues descend and are >= 0.

    Attributes:
        q_in: ``[C_in, C_in]``.
        lambda_in: ``[C_in]``.
        q_out: ``[C_out, C_out]``.
        lambda_out: ``[C_out]``.
    """

    q_in: Tensor
    lambda_in: Tensor
    q_out: Tensor
    lambda_out: Tensor


def eigenbasis(input_factor: Tensor, gradient_factor: Tensor) -> EigenBasis:
    """Return the eigenbases of A ``[C_in, C_in]`` and G ``[C_out, C_out]`` in double precision."""
    lambda_in, q_in = _descending(input_factor)
    lambda_out, q_out = _descending(gradient_factor)
    return EigenBasis(q_in, lambda_in, q_out, lambda_out)


def power(matrix: Tensor, exponent: float, damping: float) -> Tensor:
    """Return the power of a symmetric positive semi-definite matrix ``[C, C]`` in double precision.

    Args:
        damping: added to every eigenvalue (clamped at 0 before), as a share of the mean eigenvalue.

    Raises:
        ValueError: if the exponent is negative and the damped matrix is singular.
    """
    eigenvalues, vectors = _descending(matrix)
    eigenvalues = eigenvalues + damping * eigenvalues.mean()
    if exponent < 0 and not bool((eigenvalues > 0).all()):
        raise ValueError(f"power {exponent} of a singular matrix (damping {damping})")
    return (vectors * eigenvalues**exponent) @ vectors.T


def _descending(matrix: Tensor) -> tuple[Tensor, Tensor]:
    eigenvalues, vectors = torch.linalg.eigh(matrix.double())
    return eigenvalues.flip(0).clamp(min=0), vectors.flip(1)
