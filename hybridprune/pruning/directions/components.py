"""A tensor as a sum of few outer products, by regularised alternating least squares (pure).

The canonical polyadic decomposition ``T ~ sum_r a_r x b_r x c_r`` (Carroll & Chang 1970; of convolutions:
Lebedev et al. 2015). Its factors are not nested: those of R components are not among those of R + 1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

WIDE = 2**17
"""Tensors with more entries are decomposed in single precision."""
PULL, DECAY, REST = 1e-4, 0.9, 1e-6
"""How strongly a sweep holds on to the factors before it, relative to the mean eigenvalue of its normal equations: at
first, from sweep to sweep, and at least. Without it components grow without bound against each other (the
decomposition is ill-posed: de Silva & Lim 2008), and the network could not be fine-tuned."""


Start = tuple[Tensor, Tensor]
"""Orthonormal columns ``[C_out, C_out]`` and ``[C_in, C_in]``."""


class Components(NamedTuple):
    """``T ~ sum_r out_r x in_r x offset_r``."""

    outputs: Tensor
    """``[C_out, R]``"""
    inputs: Tensor
    """``[C_in, R]``"""
    offsets: Tensor
    """``[k^2, R]``"""
    error: float
    """``|T - sum|^2 / |T|^2``"""


@torch.no_grad()
def components(tensor: Tensor, rank: int, sweeps: int, start: Start | None = None) -> Components:
    """The decomposition of ``tensor [C_out, C_in, k^2]`` into ``rank`` components, of balanced norms.

    Every factor in turn is the least-squares solution given the other two. They start from the leading singular vectors
    of the unfoldings (`start_of`; ``start``, where they are known), completed by random ones (of a fixed seed). The
    error never grows from one sweep to the next.
    """
    tensor = _rounded(tensor)
    total = float(tensor.double().square().sum())
    factors = _first(tensor, rank, start_of(tensor) if start is None else start)
    layouts = [tensor.permute(order).contiguous() for order in _LAYOUTS]
    pull = PULL
    for _ in range(sweeps):
        for mode in range(3):
            factors[mode] = _solved(layouts[mode], factors, mode, pull)
        pull = max(pull * DECAY, REST)
        factors = balanced(factors)
    left = (tensor - torch.einsum("or,ir,kr->oik", *factors)).double().square().sum()
    outputs, inputs, offsets = (factor.double() for factor in factors)
    return Components(outputs, inputs, offsets, float(left) / total if total > 0 else 0.0)


def start_of(tensor: Tensor) -> Start:
    """The singular vectors ``[C_out, C_out]`` and ``[C_in, C_in]`` of a tensor's unfoldings, for every rank alike."""
    tensor = _rounded(tensor)
    return left_vectors(tensor.flatten(1)), left_vectors(tensor.movedim(1, 0).flatten(1))


def _rounded(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.numel() > WIDE else tensor.double()


def _first(tensor: Tensor, rank: int, start: Start) -> list[Tensor]:
    source = torch.Generator().manual_seed(0)
    factors = [torch.randn(size, rank, generator=source, dtype=torch.float32).to(tensor) for size in tensor.shape]
    for factor, vectors in zip(factors[:2], start, strict=True):
        assert vectors.shape == (len(factor), len(factor)), "vectors of another tensor"
        leading = vectors[:, :rank]
        factor[:, : leading.shape[1]] = leading.to(tensor)
    return factors


def left_vectors(unfolding: Tensor) -> Tensor:
    """The left singular vectors of ``unfolding [C, M]``, as columns ``[C, C]``, by descending singular value.

    The largest entry of each is positive. Otherwise its sign would be that of the rounding, and what is found from
    there, with random vectors beside it, another thing on another machine.
    """
    vectors = torch.linalg.eigh((unfolding @ unfolding.T).double())[1].flip(1)
    return vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()


_LAYOUTS = ((0, 2, 1), (1, 2, 0), (2, 1, 0))
"""The tensor's axes as each mode needs them: its own first, and that which is multiplied out last."""


def _solved(tensor: Tensor, factors: list[Tensor], mode: int, pull: float) -> Tensor:
    """The factor of one mode that fits best, given the others and a pull towards what it is.

    ``tensor`` has the layout of the mode.
    """
    _, middle, last = (factors[axis] for axis in _LAYOUTS[mode])
    gram = ((middle.T @ middle) * (last.T @ last)).double()
    damping = pull * gram.diagonal().mean().clamp(min=torch.finfo(torch.float64).tiny)
    right = ((tensor @ last) * middle).sum(1).double() + damping * factors[mode].double()
    gram.diagonal().add_(damping)
    root, failed = torch.linalg.cholesky_ex(gram)
    if failed:  # of products in single precision, an eigenvalue may round to less than nothing
        return torch.linalg.solve(gram, right.T).T.to(tensor)
    return torch.cholesky_solve(right.T, root).T.to(tensor)


def balanced(factors: list[Tensor]) -> list[Tensor]:
    """Factors ``[size, R]`` of the same sum of outer products, of which those of a component have one norm."""
    norms = [factor.norm(dim=0).clamp(min=torch.finfo(factor.dtype).tiny ** 0.25) for factor in factors]
    common = (norms[0] * norms[1] * norms[2]) ** (1 / 3)
    return [factor * (common / norm) for factor, norm in zip(factors, norms, strict=True)]
