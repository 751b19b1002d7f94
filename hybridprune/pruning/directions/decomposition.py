"""A layer in a basis whose directions are ordered by what they are worth, or as a sum of components (pure)."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from hybridprune.pruning.directions.components import Components, Start, balanced, components, start_of

SWEEPS = 100
"""Of the least squares that find a layer's components, once their number is known."""
PLANNING_SWEEPS = 20
"""While numbers are compared: what is expected then is a little worse than what comes."""


@dataclass(frozen=True)
class Factors:
    """``W = rotate_out . core . rotate_in`` at every kernel offset.

    In the separable form the core is ``[R, 1, kh, kw]``: at every offset a diagonal matrix.
    """

    rotate_out: Tensor
    """``[C_out, r_out]``"""
    core: Tensor
    """``[r_out, r_in, kh, kw]``"""
    rotate_in: Tensor
    """``[r_in, C_in]``"""
    separable: bool = False

    def dense(self) -> Tensor:
        """``[C_out, C_in, kh, kw]``"""
        if self.separable:
            return torch.einsum("or,rkl,ri->oikl", self.rotate_out, self.core[:, 0], self.rotate_in)
        return torch.einsum("or,rskl,si->oikl", self.rotate_out, self.core, self.rotate_in)


@dataclass(frozen=True)
class Decomposition:
    """A weight in two bases whose directions are ordered by their score.

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
    importance: Tensor
    """``[C_out, C_in]``, on the CPU, where plans are made: the rise of the loss (nats) that losing a pair of directions
    is expected to cost"""
    offset_root: Tensor | None = None
    """``[k^2, k^2]``, the metric's square root over the kernel offsets; None: the identity"""
    separated: dict[int, float] = field(default_factory=dict, repr=False, compare=False)
    """Errors of sums of components that were tried, by their number: another plan of the layer tries the same ones."""

    @property
    def weighted(self) -> Tensor:
        """The core in the metric of the kernel offsets, too ``[C_out, C_in, k^2]``."""
        flat = self.core.flatten(2)
        return flat if self.offset_root is None else flat @ self.offset_root

    @property
    def out_scores(self) -> Tensor:
        """``[C_out]``, descending: the rise of the loss that removing the direction is expected to cost."""
        return _descending(self.importance.sum(1))

    @property
    def in_scores(self) -> Tensor:
        """``[C_in]``, descending."""
        return _descending(self.importance.sum(0))

    def losses(self) -> Tensor:
        """``[C_out + 1, C_in + 1]``: the expected rise of the loss when ``r_out`` and ``r_in`` directions are kept.

        Exact in the quadratic model, where the sum of the scores of both sides counts what both remove twice.
        """
        kept = self.importance.new_zeros(self.importance.shape[0] + 1, self.importance.shape[1] + 1)
        kept[1:, 1:] = self.importance.cumsum(0).cumsum(1)
        return (kept[-1, -1] - kept).clamp(min=0)

    def truncate(self, rank_out: int, rank_in: int, sweeps: int = 0) -> Factors:
        """The layer at these ranks; rotations are orthonormal, the scale is in the core.

        The leading directions are kept, or, with ``sweeps``, the best subspaces that so many sweeps of higher-order
        orthogonal iteration find from there (De Lathauwer et al. 2000b).
        """
        if sweeps and rank_out < self.core.shape[0] and rank_in < self.core.shape[1]:
            return self._iterated(rank_out, rank_in, sweeps)
        coordinates = self.core[:rank_out, :rank_in]
        left, right = self.out_scale[:rank_out, :rank_out], self.in_scale[:rank_in, :rank_in]
        core = torch.einsum("pr,rskl,qs->pqkl", left, coordinates, right)
        return Factors(self.out_basis[:, :rank_out], core, self.in_basis[:, :rank_in].T)

    def separate(self, rank: int) -> Factors:
        """The layer as a sum of so many components, each a product over outputs, inputs and kernel offsets.

        They are those of the core in the metric in which directions are scored. Rotations have rows (columns) of one
        norm with their kernels.
        """
        found = self._components(rank, SWEEPS)
        offsets = found.offsets
        if self.offset_root is not None:
            offsets = torch.linalg.solve(self.offset_root.double().T, offsets)
        unscaled = [
            self.out_basis @ self.out_scale @ found.outputs,
            self.in_basis @ self.in_scale @ found.inputs,
            offsets,
        ]
        outputs, inputs, offsets = balanced(unscaled)
        kernels = offsets.T.reshape(rank, 1, *self.core.shape[2:])
        return Factors(outputs, kernels, inputs.T, separable=True)

    def separation_loss(self, rank: int) -> float:
        """The expected rise of the loss when the layer becomes a sum of so many components.

        By the importance of all directions and the share of the core that is left out: exact where importance is the
        core's squared entries in a constant multiple, as in the Fisher metric.
        """
        if rank not in self.separated:
            self.separated[rank] = self._components(rank, PLANNING_SWEEPS).error
        return self.separated[rank] * float(self.importance.sum())

    def _components(self, rank: int, sweeps: int) -> Components:
        return components(self.weighted, rank, sweeps, self._start)

    @cached_property
    def _start(self) -> Start:
        return start_of(self.weighted)

    def _iterated(self, rank_out: int, rank_in: int, sweeps: int) -> Factors:
        weighted = self.weighted
        in_vectors = torch.eye(weighted.shape[1], rank_in, dtype=weighted.dtype, device=weighted.device)
        out_vectors = torch.eye(len(weighted), rank_out, dtype=weighted.dtype, device=weighted.device)
        for _ in range(sweeps):
            # Each side in turn: the leading singular vectors of the unfolding, given the other side's subspace.
            half = torch.einsum("pqk,qs->psk", weighted, in_vectors)
            out_vectors = _leading(half.flatten(1), rank_out)
            half = torch.einsum("pqk,pr->qrk", weighted, out_vectors)
            in_vectors = _leading(half.flatten(1), rank_in)
        out_basis, left = torch.linalg.qr(self.out_basis @ self.out_scale @ out_vectors)
        in_basis, right = torch.linalg.qr(self.in_basis @ self.in_scale @ in_vectors)
        core = torch.einsum("pr,ur,uvkl,vs,qs->pqkl", left, out_vectors, self.core, in_vectors, right)
        return Factors(out_basis, core, in_basis.T)


def _leading(unfolding: Tensor, rank: int) -> Tensor:
    """The leading ``rank`` left singular vectors, completed to a basis where the matrix has too few columns."""
    return torch.linalg.svd(unfolding, full_matrices=rank > unfolding.shape[1])[0][:, :rank]


def _descending(scores: Tensor) -> Tensor:
    """The scores without the rises of rounding."""
    return scores.clamp(min=0).cummin(0).values
