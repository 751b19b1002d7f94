"""Moments of one convolution's inputs across kernel offsets: K by itself, or with A from the full covariance."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridprune.curvature.geometry import Geometry

UNFOLDED_BYTES = 2**28


def offset_moment(x: Tensor, geometry: Geometry, memory: int = UNFOLDED_BYTES) -> Tensor:
    """Return the mean over images, output positions and channels of ``x_off x_off'``, ``[k^2, k^2]``.

    Nothing is unfolded. Pixels of two rows meet in products ``[w, W]`` over images and channels, whatever the output
    position that reads them; one product per row and vertical distance of offsets serves all. Of the columns only those
    meet that are within a kernel's reach.

    Args:
        x: layer input ``[B, C_in, H, W]``.
        memory: bytes that copies of the images may take, beyond a single one.
    """
    chunk = max(1, memory // (2 * x[0].numel() * x.itemsize))
    parts = [_offset_sum(images, geometry) for images in x.split(chunk)]
    return torch.stack(parts).sum(0) / (len(x) * x.shape[1] * geometry.positions(x.shape[2], x.shape[3]))


def _offset_sum(x: Tensor, geometry: Geometry) -> Tensor:
    """The sum of which `offset_moment` is the mean."""
    (height, width), _, padding, dilation = geometry.pairs()
    rows, columns = (
        torch.tensor(geometry.reads(axis, x.shape[2 + axis]), device=x.device) for axis in (0, 1)
    )  # [kh, H'] and [kw, W'], padded coordinates
    pixels = x.permute(2, 3, 0, 1).flatten(2)
    size = [length + 2 * pad for length, pad in zip(x.shape[2:], padding, strict=True)]
    read = x.new_zeros(height, size[0]).scatter_(1, rows, 1.0)  # whether an offset reads a row
    moment = x.new_zeros(height, width, height, width)
    for distance in range(height):
        products = x.new_zeros(size[0], size[1], size[1])
        below = pixels[dilation[0] * distance :]
        inside = products[padding[0] : padding[0] + len(below)]
        for here, there in _within_reach(x.shape[3], reach=dilation[1] * (width - 1)):
            found = torch.bmm(pixels[: len(below), here], below[:, there].mT)
            inside[:, _shifted(here, padding[1]), _shifted(there, padding[1])] = found
        row_sums = (read @ products.flatten(1)).view(-1, *products.shape[1:])
        for top in range(height - distance):
            block = row_sums[top][columns[:, None], columns[None, :]].sum(-1)
            moment[top, :, top + distance] = block
            moment[top + distance, :, top] = block.T
    return moment.view(height * width, height * width)


def _within_reach(length: int, reach: int) -> Iterator[tuple[slice, slice]]:
    """Yield ranges that cover a length, each with the range of what is within ``reach`` of it."""
    step = max(2 * reach, 4)
    for start in range(0, length, step):
        stop = min(start + step, length)
        yield slice(start, stop), slice(max(start - reach, 0), min(stop + reach, length))


def _shifted(part: slice, by: int) -> slice:
    return slice(part.start + by, part.stop + by)


def full_covariance(x: Tensor, geometry: Geometry, memory: int = UNFOLDED_BYTES) -> Tensor:
    """Return the mean over images and positions of the unfolded input's outer product, ``[C_in k^2, C_in k^2]``.

    Args:
        x: layer input ``[B, C_in, H, W]``.
        memory: bytes that unfolded images may take, beyond a single one.
    """
    kernel, stride, padding, dilation = geometry.pairs()
    size = x.shape[1] * geometry.offsets()
    total, reads = x.new_zeros(size, size), 0
    # twice: unfolding lays the images out one after the other, the product needs them side by side
    chunk = memory // (2 * size * geometry.positions(x.shape[2], x.shape[3]) * x.itemsize)
    for images in x.split(max(1, chunk)):
        windows = F.unfold(images, kernel, dilation, padding, stride).transpose(0, 1).flatten(1)
        total.addmm_(windows, windows.T)
        reads += windows.shape[1]
    return total / reads


def nearest_kronecker_product(covariance: Tensor, offsets: int) -> tuple[Tensor, Tensor]:
    """Return A ``[C, C]`` and K ``[k^2, k^2]`` whose Kronecker product is nearest in the Frobenius norm.

    The rearranged covariance (a row per pair of channels, a column per pair of offsets) is approximated by its
    first singular pair: Van Loan & Pitsianis, "Approximation with Kronecker products", 1993. Power iteration
    from the partial trace maps positive semi-definite factors to such factors, so that both are.

    Args:
        covariance: symmetric positive semi-definite ``[C k^2, C k^2]``, offsets varying fastest.
        offsets: k^2, the trace that K gets; A carries the rest. Both are 0 if the covariance is.
    """
    blocks = covariance.double().unflatten(1, (-1, offsets)).unflatten(0, (-1, offsets))
    channels = len(blocks)
    k = torch.einsum("cpcq->pq", blocks).flatten()
    if not k.any():
        return covariance.new_zeros(channels, channels), covariance.new_zeros(offsets, offsets)
    rearranged = blocks.transpose(1, 2).reshape(channels**2, offsets**2)
    gram = rearranged.T @ rearranged
    for _ in range(1000):
        previous, k = k, gram @ k
        k = k / k.norm()
        if (k - previous).norm() < 1e-12:
            break
    k = k * (offsets / k.view(offsets, offsets).trace())
    a = (rearranged @ k / k.square().sum()).view(channels, channels)
    k = k.view(offsets, offsets)
    return ((a + a.T) / 2).to(covariance), ((k + k.T) / 2).to(covariance)
