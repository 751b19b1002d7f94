"""Tucker decomposition of each weight in the metric of its Fisher information: the default method.

The higher-order SVD (De Lathauwer et al. 2000a) of ``T = G^(1/2) W A^(1/2) K^(1/2)``, of the Kronecker factors of the
Fisher: a direction costs half its squared singular value, in nats.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hybridprune.curvature import LayerFactors, SecondMoments, pi_damping, power, powers
from hybridprune.pruning.directions.components import left_vectors
from hybridprune.pruning.directions.decomposition import Decomposition
from hybridprune.pruning.method import DirectionMethod


def decompose(weight: Tensor, factors: LayerFactors, moments: SecondMoments | None, damping: float) -> Decomposition:
    """Higher-order SVD (De Lathauwer et al. 2000a) of ``T = G^(1/2) W A^(1/2) K^(1/2)`` over its channel modes.

    Cutting a direction costs half its squared singular value in the units of the Kronecker approximation, which the
    exact trace in ``moments`` turns into nats. K, where it is given, weighs the kernel offsets, which are never cut.
    Unwhitened rotations are badly scaled (fine-tuning would diverge), hence the QR.
    """
    assert moments is not None
    metrics = [_metric(factors.gradient_factor), _metric(factors.input_factor)]
    if factors.offset_factor is not None:
        metrics.append(_metric(factors.offset_factor))
    damped = [
        metric + amount * _eye_like(metric)
        for metric, amount in zip(metrics, pi_damping(metrics, damping), strict=True)
    ]
    (root_out, whiten_out), (root_in, whiten_in) = (powers(m, (0.5, -0.5), 0.0) for m in damped[:2])
    offset_root = power(damped[2], 0.5, 0.0) if len(damped) == 3 else None
    whitened = torch.einsum("po,oikl,iq->pqkl", root_out, weight.double(), root_in)
    weighted = whitened.flatten(2) if offset_root is None else whitened.flatten(2) @ offset_root
    out_vectors, in_vectors = left_vectors(weighted.flatten(1)), left_vectors(weighted.transpose(0, 1).flatten(1))
    energy = torch.einsum("op,oik,iq->pqk", out_vectors, weighted, in_vectors).square().sum(2)
    out_basis, out_scale = torch.linalg.qr(whiten_out @ out_vectors)
    in_basis, in_scale = torch.linalg.qr(whiten_in @ in_vectors)
    return Decomposition(
        out_basis=out_basis,
        core=torch.einsum("op,oikl,iq->pqkl", out_vectors, whitened, in_vectors),
        in_basis=in_basis,
        out_scale=out_scale,
        in_scale=in_scale,
        importance=(0.5 * factors.positions * calibration(factors, moments, weight[0, 0].numel()) * energy).cpu(),
        offset_root=offset_root,
    )


def calibration(factors: LayerFactors, moments: SecondMoments, kernel_area: int) -> float:
    """Exact trace of the layer's second moments over the trace of its Kronecker approximation.

    Positions are correlated, so the uncorrected approximation is wrong by a factor that differs between layers;
    scores cannot be compared across layers without it.
    """
    traces = float(factors.input_factor.double().trace() * factors.gradient_factor.double().trace())
    approximate = factors.positions * kernel_area * traces
    return moments.trace / approximate if approximate > 0 else 0.0


def _metric(factor: Tensor) -> Tensor:
    """The factor, or the identity where no gradient ever arrived: then no direction is better than another."""
    return factor.double() if factor.trace() > 0 else _eye_like(factor.double())


def _eye_like(matrix: Tensor) -> Tensor:
    return torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)


METHOD = DirectionMethod(decompose, allocation="rate_distortion", moments=lambda corrected: "trace", separates=True)
