"""Eigen-maths of the Kronecker factors (pure, in double precision)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class EigenBasis:
    """Eigenbases of one layer's two or three factors; columns are eigenvectors, eigenvalues descend and are >= 0.

    Attributes:
        q_in: ``[C_in, C_in]``.
        lambda_in: ``[C_in]``.
        q_out: ``[C_out, C_out]``.
        lambda_out: ``[C_out]``.
        q_offset: ``[k^2, k^2]``; None without an offset factor.
        lambda_offset: ``[k^2]``; None without an offset factor.
    """

    q_in: Tensor
    lambda_in: Tensor
    q_out: Tensor
    lambda_out: Tensor
    q_offset: Tensor | None = None
    lambda_offset: Tensor | None = None


def eigenbasis(input_factor: Tensor, gradient_factor: Tensor, offset_factor: Tensor | None = None) -> EigenBasis:
    """Return the eigenbases of A ``[C_in, C_in]``, G ``[C_out, C_out]`` and K ``[k^2, k^2]`` in double precision."""
    lambda_in, q_in = _descending(input_factor)
    lambda_out, q_out = _descending(gradient_factor)
    if offset_factor is None:
        return EigenBasis(q_in, lambda_in, q_out, lambda_out)
    lambda_offset, q_offset = _descending(offset_factor)
    return EigenBasis(q_in, lambda_in, q_out, lambda_out, q_offset, lambda_offset)


def power(matrix: Tensor, exponent: float, damping: float) -> Tensor:
    """Return one of the `powers` of a matrix ``[C, C]``."""
    return powers(matrix, (exponent,), damping)[0]


def powers(matrix: Tensor, exponents: Sequence[float], damping: float) -> list[Tensor]:
    """Return powers of a symmetric positive semi-definite matrix ``[C, C]`` in double precision, from one eigenbasis.

    Args:
        damping: added to every eigenvalue (clamped at 0 before), as a share of the mean eigenvalue.

    Raises:
        ValueError: if an exponent is negative and the damped matrix is singular.
    """
    eigenvalues, vectors = _descending(matrix)
    eigenvalues = eigenvalues + damping * eigenvalues.mean()
    if min(exponents) < 0 and not bool((eigenvalues > 0).all()):
        raise ValueError(f"power {min(exponents)} of a singular matrix (damping {damping})")
    return [(vectors * eigenvalues**exponent) @ vectors.T for exponent in exponents]


def pi_damping(factors: Sequence[Tensor], regularization: float) -> list[float]:
    """Return what to add to the eigenvalues of each of a layer's m factors ``[n_i, n_i]``: their parts of one damping.

    Martens & Grosse 2015, section 6.3, give two factors ``pi sqrt(d)`` and ``sqrt(d) / pi`` of a total damping d,
    where ``pi^2 = m_1 / m_2`` is the ratio of the mean eigenvalues ``m_i = tr_i / n_i``. In general factor i gets
    ``d^(1/m) m_i / geometric mean of the m_j``. Here the damping is relative to the layer's mean eigenvalue,
    ``d = regularization * m_1 ... m_m``, whose root cancels the geometric mean: every factor gets the share
    ``regularization^(1/m)`` of its own mean eigenvalue, which is also the ``damping`` to give to `power`.
    """
    share = regularization ** (1 / len(factors))
    return [share * factor.double().trace().item() / len(factor) for factor in factors]


def _descending(matrix: Tensor) -> tuple[Tensor, Tensor]:
    eigenvalues, vectors = torch.linalg.eigh(matrix.double())
    return eigenvalues.flip(0).clamp(min=0), vectors.flip(1)
