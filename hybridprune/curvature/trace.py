"""The trace of one layer's exact second moments, from what its factors are collected of (pure maths)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hybridprune.curvature.geometry import Geometry
from hybridprune.curvature.gradients import GRADIENT_BYTES, by_image, bytes_with, portions, reads_of
from hybridprune.curvature.passes import Seen


@dataclass(frozen=True)
class GradientTrace:
    """Mean over images of ``||dW||_F^2``, dW each image's own gradient in a layer's weight, and how a mean changes it.

    With ``mu [C_in]`` subtracted from the inputs at every position and offset, padding included, each of the k^2
    offsets of dW loses ``s mu^T``, where s ``[C_out]`` is the sum of the output's gradient over the positions. So
    ``||dW||^2`` becomes ``||dW||^2 - 2 mu^T v + k^2 ||s||^2 ||mu||^2``, with ``v [C_in] = sum over offsets of dW^T s``.
    """

    value: float
    """Mean of ``||dW||_F^2``."""
    cross: Tensor
    """Mean of v ``[C_in]``, in double precision."""
    sums: float
    """Mean of ``k^2 ||s||^2``."""

    def centred(self, mean: Tensor) -> GradientTrace:
        """Return the trace of the gradients given a bias that absorbs ``mean [C_in]`` of the inputs."""
        assert mean.shape == self.cross.shape, (mean.shape, self.cross.shape)
        mu = mean.to(self.cross)
        less = 2 * (mu @ self.cross).item() - self.sums * (mu @ mu).item()
        # a difference of two numbers that may be alike: rounding must not leave less than nothing
        return replace(self, value=max(self.value - less, 0.0), cross=self.cross - self.sums * mu)


@dataclass
class TraceSums:
    """Sums over images whose ratios are a `GradientTrace`; all tensors, in double precision."""

    squares: Tensor
    cross: Tensor
    sums: Tensor
    images: Tensor
    """Weight of the images; one that did not run through the layer has a gradient of 0."""

    @classmethod
    def zeros_for(cls, weight: Tensor) -> TraceSums:
        """Return the empty sums of a layer with this weight ``[C_out, C_in, ...]``."""
        zero = weight.new_zeros((), dtype=torch.float64)
        return cls(zero, zero.new_zeros(weight.shape[1]), zero.clone(), zero.clone())

    def add(self, seen: Seen, memory: int = GRADIENT_BYTES) -> None:
        """Add what the layer saw of a batch; ``memory`` as in `collect_second_moments`."""
        x, g, geometry, frames, batch_size = seen
        for some_x, some_g in portions(x, g, frames, _bytes_per_image(x, g, geometry, frames), memory):
            squares, cross, sums = trace_terms(some_x, some_g * batch_size, geometry, frames)
            self.squares += squares
            self.cross += cross
            self.sums += sums

    def tensors(self) -> tuple[Tensor, ...]:
        """Return all sums."""
        return self.squares, self.cross, self.sums, self.images

    def mean(self) -> GradientTrace:
        """Return the means over the images."""
        images = self.images.item() or 1.0
        return GradientTrace(self.squares.item() / images, self.cross / images, self.sums.item() / images)


def trace_terms(x: Tensor, g: Tensor, geometry: Geometry, frames: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sums over images of ``||dW||^2``, v ``[C_in]`` and ``k^2 ||s||^2``, see `GradientTrace`.

    dW itself, ``[C_out, C_in, k^2]``, is only computed if it is cheaper than what positions have in common: with P
    positions of an image, ``||dW||^2 = sum over p, q of (g_p . g_q) (sum over offsets of x_p . x_q)``.

    Args:
        x: layer input ``[b m, C_in, H, W]``, the m ``frames`` of an image following each other.
        g: ``[b m, C_out, H', W']``, the gradient of each image's own loss in the layer's output.
    """
    offsets = geometry.offsets()
    gradients = by_image(g.permute(0, 2, 3, 1), frames)
    positions, outputs = gradients.shape[1:]
    summed = gradients.sum(1)
    weights = (gradients @ summed[..., None]).flatten()
    squares, cross = x.new_zeros((), dtype=torch.float64), x.new_zeros(x.shape[1])
    in_common = _is_cheaper_by_positions(positions, outputs, x.shape[1], offsets)
    products = x.new_zeros(len(gradients), positions, positions) if in_common else None
    for read in reads_of(x, g, geometry, frames, None):
        cross += weights @ read.flatten(0, 1)
        if products is None:
            # a norm would add up one after the other, and lose three digits of millions of entries
            squares += (gradients.mT @ read).square_().sum()
        else:
            products.baddbmm_(read, read.mT)
    if products is not None:
        # of both signs: rounding must not leave less than nothing
        squares += products.mul_(gradients @ gradients.mT).sum().clamp(min=0)
    return squares, cross, offsets * summed.square().sum()


def _is_cheaper_by_positions(positions: int, outputs: int, inputs: int, offsets: int) -> bool:
    return positions * (offsets * inputs + outputs) < offsets * inputs * outputs


def _bytes_per_image(x: Tensor, g: Tensor, geometry: Geometry, frames: int) -> int:
    positions, outputs, inputs = frames * g.shape[2] * g.shape[3], g.shape[1], x.shape[1]
    by_positions = _is_cheaper_by_positions(positions, outputs, inputs, geometry.offsets())
    return bytes_with(2 * positions**2 if by_positions else outputs * inputs, x, g, frames)
