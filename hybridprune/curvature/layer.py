"""Kronecker factors of one layer, and the running sums that they come from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from hybridprune.curvature.factors import gradient_factor, input_factor, input_mean
from hybridprune.curvature.geometry import geometry_of
from hybridprune.curvature.offsets import full_covariance, nearest_kronecker_product, offset_moment
from hybridprune.curvature.passes import Seen
from hybridprune.curvature.trace import GradientTrace, TraceSums


@dataclass(frozen=True)
class LayerFactors:
    """Kronecker factors of one layer: its Fisher is about ``positions`` times their Kronecker product.

    Attributes:
        input_factor: A ``[C_in, C_in]``, mean over the images that ran through the layer.
        gradient_factor: G ``[C_out, C_out]``, mean over all images; one that did not run through counts as 0.
        positions: number of an image's output positions S, over all of its frames, windows or tokens.
        input_mean: mu ``[C_in]``, mean of the inputs as A is of their outer products; padding counts as 0.
        offset_factor: K ``[k^2, k^2]`` of trace k^2; None if offsets count as uncorrelated, or there is only one.
        trace: exact mean over images of ``||dW||_F^2``; None if it was not asked for.

    All are 0 if no gradient ever reached the layer.
    """

    input_factor: Tensor
    gradient_factor: Tensor
    positions: int
    input_mean: Tensor
    offset_factor: Tensor | None = None
    trace: GradientTrace | None = None

    def centred(self) -> LayerFactors:
        """Return the factors given a bias that absorbs the input's mean: the Schur complement ``A - mu mu^T``.

        The trace is that of the centred gradients then. K stays as it is. Rounding, or an A of the nearest Kronecker
        product, can leave eigenvalues below 0, which `eigenbasis` clamps.
        """
        mean = self.input_mean
        return replace(
            self,
            input_factor=self.input_factor - torch.outer(mean, mean),
            input_mean=torch.zeros_like(mean),
            trace=None if self.trace is None else self.trace.centred(mean),
        )


@dataclass
class FactorSums:
    """Sums over images whose ratios are one layer's factors; all tensors, so that processes can add them up."""

    input: Tensor
    """Of A, or of the full covariance."""
    mean: Tensor
    gradient: Tensor
    offset: Tensor | None
    """Of K; None without K, or with the full covariance."""
    images: Tensor
    """Weight of all images."""
    input_images: Tensor
    """Weight of the images that ran through the layer."""
    positions: Tensor
    misfits: Tensor
    """Batches whose rows were not those of images."""
    trace: TraceSums | None
    """None if it was not asked for."""
    has_offsets: bool = False
    """Whether something was added to ``offset``."""

    @classmethod
    def zeros_for(cls, layer: nn.Module, sua: bool, use_full_cov_a: bool, traced: bool) -> FactorSums:
        """Return the empty sums of a layer; the options are those of `collect_factors`."""
        weight = layer.get_parameter("weight").detach()
        (c_out, c_in), offsets = weight.shape[:2], geometry_of(layer).offsets()
        full = use_full_cov_a and not sua
        size = c_in * offsets if full else c_in
        return cls(
            input=weight.new_zeros(size, size),
            mean=weight.new_zeros(c_in),
            gradient=weight.new_zeros(c_out, c_out),
            offset=None if sua or full or offsets == 1 else weight.new_zeros(offsets, offsets),
            images=weight.new_zeros((), dtype=torch.float64),
            input_images=weight.new_zeros((), dtype=torch.float64),
            positions=weight.new_zeros((), dtype=torch.float64),
            misfits=weight.new_zeros((), dtype=torch.float64),
            trace=TraceSums.zeros_for(weight) if traced else None,
        )

    def add(self, seen: Seen | None, with_offsets: bool, traced: bool) -> None:
        """Add what the layer saw of a batch: to the moments of A, its mean and G, and to others as told.

        The first batch that runs through the layer counts for K in any case: K of none would say that nothing matters.
        """
        if seen is None:
            self.misfits += 1
            return
        x, g, geometry, frames, batch_size = seen
        full, images = len(self.input) > len(self.mean), len(x) // frames
        self.input += (full_covariance if full else input_factor)(x, geometry) * images
        self.mean += input_mean(x, geometry) * images
        if self.offset is not None and (with_offsets or not self.has_offsets):
            self.has_offsets = True
            self.offset += offset_moment(x, geometry) * images
        self.gradient += gradient_factor(g, batch_size, frames) * batch_size
        self.positions += g.shape[2] * g.shape[3] * len(x)
        self.input_images += images
        if self.trace is not None and traced:
            self.trace.add(seen)

    def count(self, images: int, traced: bool) -> None:
        """Add a batch's images to the weights, whether they ran through the layer or not."""
        self.images += images
        if self.trace is not None and traced:
            self.trace.images += images

    def decay(self, factor: float) -> None:
        """Multiply all sums and weights."""
        for each in self.tensors():
            each *= factor

    def tensors(self) -> Iterator[Tensor]:
        """Return all sums and weights, always in the same order."""
        yield from (self.input, self.mean, self.gradient, self.images, self.input_images, self.positions, self.misfits)
        if self.offset is not None:
            yield self.offset
        if self.trace is not None:
            yield from self.trace.tensors()

    def factors(self) -> LayerFactors:
        """Return the means."""
        through = self.input_images.item() or 1.0
        a, k = self.input / through, None
        if self.offset is not None:
            trace = self.offset.trace().item() or 1.0
            k = self.offset * (len(self.offset) / trace)
        elif len(a) > len(self.mean):
            a, k = nearest_kronecker_product(a, offsets=len(a) // len(self.mean))
        return LayerFactors(
            input_factor=a,
            gradient_factor=self.gradient / self.images.item(),
            positions=round(self.positions.item() / through),
            input_mean=self.mean / through,
            offset_factor=k,
            trace=None if self.trace is None else self.trace.mean(),
        )
