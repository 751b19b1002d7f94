"""A layer's directions, best first, and what they are worth: the methods' maths (pure, in double precision).

A method turns a weight and its curvature into a ``Decomposition``; ``METHODS`` is their registry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hybridprune.curvature import LayerFactors, SecondMoments, eigenbasis, power


@dataclass(frozen=True)
class Factors:
    """``W = rotate_out . core . rotate_in`` at every kernel offset."""

    rotate_out: Tensor
    """``[C_out, r_out]``"""
    core: Tensor
    """``[r_out, r_in, kh, kw]``"""
    rotate_in: Tensor
    """``[r_in, C_in]``"""

    def dense(self) -> Tensor:
        """``[C_out, C_in, kh, kw]``"""
        return torch.einsum("or,rskl,si->oikl", self.rotate_out, self.core, self.rotate_in)


@dataclass(frozen=True)
class Decomposition:
    """A weight in a basis whose directions are ordered by their score, on either side.

    With all directions the factors give back the weight exactly; the leading ones give the pruned layer.
    """

    out_basis: Tensor
    """``[C_out, C_out]``, orthonormal columns"""
    core: Tensor
    """``[C_out, C_in, kh, kw]``, coordinates in the unscaled bases"""
    in_basis: Tensor
    """``[C_in, C_in]``, orthonormal columns"""
    out_scale: Tensor
    """``[C_out, C_out]``, upper triangular: the core of rank r is ``scale[:r, :r]`` applied to the coordinates"""
    in_scale: Tensor
    """``[C_in, C_in]``, upper triangular"""
    out_scores: Tensor
    """``[C_out]``, descending: the rise of the loss (nats) that removing the direction is expected to cost"""
    in_scores: Tensor
    """``[C_in]``, descending"""

    def truncate(self, rank_out: int, rank_in: int) -> Factors:
        """The layer with the best directions only; rotations are orthonormal, the scale is in the core."""
        coordinates = self.core[:rank_out, :rank_in]
        left, right = self.out_scale[:rank_out, :rank_out], self.in_scale[:rank_in, :rank_in]
        core = torch.einsum("pr,rskl,qs->pqkl", left, coordinates, right)
        return Factors(self.out_basis[:, :rank_out], core, self.in_basis[:, :rank_in].T)


def eigendamage(weight: Tensor, factors: LayerFactors, moments: SecondMoments | None, damping: float) -> Decomposition:
    """Scores in the Kronecker-factored eigenbasis of the Fisher (EigenDamage, Wang et al. 2019, section 4).

    With ``W* = Q_g^T W Q_a`` an entry is worth ``1/2 lambda W*^2`` and a direction the sum of its entries.
    ``lambda`` is ``S lambda_g lambda_a``, or its exact second moment where ``moments`` (in this basis) are given.
    Nothing is inverted, so ``damping`` plays no part.
    """
    del damping
    basis = eigenbasis(factors.input_factor, factors.gradient_factor)
    rotated = torch.einsum("op,oikl,iq->pqkl", basis.q_out, weight.double(), basis.q_in)
    if moments is None:
        curvature = (factors.positions * basis.lambda_out[:, None] * basis.lambda_in)[:, :, None, None]
    else:
        assert moments.entries is not None and moments.entries.shape == weight.shape
        curvature = moments.entries.double()
    importance = (0.5 * curvature * rotated.square()).sum(dim=(2, 3))
    out_scores, out_order = importance.sum(1).sort(descending=True, stable=True)
    in_scores, in_order = importance.sum(0).sort(descending=True, stable=True)
    return Decomposition(
        out_basis=basis.q_out[:, out_order],
        core=rotated[out_order][:, in_order],
        in_basis=basis.q_in[:, in_order],
        out_scale=_eye_like(basis.q_out),
        in_scale=_eye_like(basis.q_in),
        out_scores=out_scores,
        in_scores=in_scores,
    )


def fisher_tucker(
    weight: Tensor, factors: LayerFactors, moments: SecondMoments | None, damping: float
) -> Decomposition:
    """Tucker decomposition (HOSVD) of the weight in the metric of the Fisher.

    ``T = G^(1/2) W A^(1/2)`` is decomposed over its two channel modes (De Lathauwer et al. 2000); cutting a direction
    then costs half its squared singular value, in the units of the Kronecker approximation, which the exact trace in
    ``moments`` turns into nats. Unwhitened rotations are badly scaled (fine-tuning would diverge), hence the QR.
    """
    assert moments is not None
    metric_out, metric_in = _metric(factors.gradient_factor), _metric(factors.input_factor)
    whitened = torch.einsum(
        "po,oikl,iq->pqkl", power(metric_out, 0.5, damping), weight.double(), power(metric_in, 0.5, damping)
    )
    out_vectors, out_values, _ = torch.linalg.svd(whitened.flatten(1), full_matrices=True)
    in_vectors, in_values, _ = torch.linalg.svd(whitened.transpose(0, 1).flatten(1), full_matrices=True)
    out_basis, out_scale = torch.linalg.qr(power(metric_out, -0.5, damping) @ out_vectors)
    in_basis, in_scale = torch.linalg.qr(power(metric_in, -0.5, damping) @ in_vectors)
    scale = 0.5 * factors.positions * calibration(factors, moments, kernel_area=weight[0, 0].numel())
    return Decomposition(
        out_basis=out_basis,
        core=torch.einsum("op,oikl,iq->pqkl", out_vectors, whitened, in_vectors),
        in_basis=in_basis,
        out_scale=out_scale,
        in_scale=in_scale,
        out_scores=scale * _padded_squares(out_values, weight.shape[0]),
        in_scores=scale * _padded_squares(in_values, weight.shape[1]),
    )


def calibration(factors: LayerFactors, moments: SecondMoments, kernel_area: int) -> float:
    """Exact trace of the layer's second moments over the trace of its Kronecker approximation.

    Positions are correlated, so the uncorrected approximation is wrong by a factor that differs between layers;
    scores cannot be compared across layers without it.
    """
    approximate = (
        factors.positions * kernel_area * float(factors.input_factor.trace() * factors.gradient_factor.trace())
    )
    return moments.trace / approximate if approximate > 0 else 0.0


def _metric(factor: Tensor) -> Tensor:
    """The factor, or the identity where no gradient ever arrived: then no direction is better than another."""
    return factor.double() if factor.trace() > 0 else _eye_like(factor.double())


def _eye_like(matrix: Tensor) -> Tensor:
    return torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)


def _padded_squares(values: Tensor, length: int) -> Tensor:
    """Squared singular values, 0 where an unfolding has more rows than columns."""
    return torch.cat([values.square(), values.new_zeros(length - len(values))])


Method = Callable[[Tensor, LayerFactors, SecondMoments | None, float], Decomposition]

METHODS: Mapping[str, Method] = {"fisher-tucker": fisher_tucker, "eigendamage": eigendamage}
