"""Per-image gradients of one layer's weight and the sum of their squares (pure maths)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridprune.curvature.geometry import Geometry, feature_map

GRADIENT_BYTES = 2**28
"""That the gradients of one layer may take, beyond those of a single image."""


def weight_gradients(x: Tensor, g: Tensor, geometry: Geometry, batch_size: int, mean: Tensor | None = None) -> Tensor:
    """Return each image's own gradient in the weight, ``[b, C_out, C_in, kh, kw]`` or ``[b, C_out, C_in]``.

    Args:
        x: layer input ``[b, C_in, H, W]``, or ``[b, C_in]`` / ``[b, T, C_in]`` of a linear layer.
        g: gradient of the mean loss in the layer's output, as in `gradient_factor`.
        batch_size: B, the number of images over which the loss is a mean.
        mean: ``[C_in]``, subtracted from the padded input, the padding included.
    """
    if x.ndim != 4:
        return weight_gradients(feature_map(x), feature_map(g), geometry, batch_size, mean)[..., 0, 0]
    gradients = torch.stack(list(_offset_gradients(x, g * batch_size, geometry, mean)), dim=-1)
    return gradients.unflatten(-1, geometry.pairs()[0])


def sum_squared_weight_gradients(
    x: Tensor,
    g: Tensor,
    geometry: Geometry,
    batch_size: int,
    frames: int = 1,
    mean: Tensor | None = None,
    q_offset: Tensor | None = None,
) -> Tensor:
    """Return the sum over images of the squares of `weight_gradients`, ``[C_out, C_in, kh, kw]``.

    In memory are the gradients of all these images (`bytes_per_image`) at one kernel offset, or at all where there is a
    basis of offsets. Where an image has one output position its gradient is an outer product, and that of the squares
    sums up to a product of matrices: ``(g^2)^T (x^2)``. Takes feature maps only.

    Args:
        frames: how many of the maps belong to each image, one after the other.
        q_offset: orthogonal ``[k^2, k^2]``, rotates the flattened offsets of the gradients before they are squared.
    """
    reads = reads_of(x, g, geometry, frames, mean)
    g = by_image(g.permute(0, 2, 3, 1), frames) * batch_size
    if q_offset is not None:
        stacked = torch.stack([g.mT @ read for read in reads])
        squares = [each.square_().sum(0) for each in torch.einsum("oe,onij->enij", q_offset.to(x), stacked)]
    elif _outer(g.shape[1]):
        squares = [g.flatten(0, 1).square().T @ read.flatten(0, 1).square() for read in reads]
    else:
        squares = [(g.mT @ read).square_().sum(0) for read in reads]
    return torch.stack(squares, dim=-1).unflatten(-1, geometry.pairs()[0])


def bytes_per_image(x: Tensor, g: Tensor, geometry: Geometry, frames: int, with_offsets: bool) -> int:
    """About what `sum_squared_weight_gradients` keeps in memory of each image of these feature maps."""
    positions = frames * g.shape[2] * g.shape[3]
    gradients = 0 if _outer(positions) and not with_offsets else g.shape[1] * x.shape[1]
    return bytes_with(gradients * (2 * geometry.offsets() if with_offsets else 1), x, g, frames)


def portions(x: Tensor, g: Tensor, frames: int, each: int, memory: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield feature maps of at least one image at a time, of as many as ``memory`` is enough for at ``each`` bytes."""
    size = frames * max(1, memory // each)
    return zip(x.split(size), g.split(size), strict=True)


def bytes_with(entries: int, x: Tensor, g: Tensor, frames: int) -> int:
    """About what is in memory of each image of these feature maps: so many entries, and copies of the maps."""
    return x.itemsize * (entries + 3 * frames * (x[0].numel() + g[0].numel()))


def _outer(positions: int) -> bool:
    """Whether an image's gradient at one kernel offset is an outer product."""
    return positions == 1


def _offset_gradients(x: Tensor, g: Tensor, geometry: Geometry, mean: Tensor | None) -> Iterator[Tensor]:
    """Yield the per-image weight gradients ``[b, C_out, C_in]`` of one kernel offset after the other."""
    return (g.flatten(2) @ read for read in reads_of(x, g, geometry, 1, mean))


def by_image(positions: Tensor, frames: int) -> Tensor:
    """Return ``[b m, H, W, C]`` as ``[b, m H W, C]``."""
    return positions.flatten(1, 2).unflatten(0, (-1, frames)).flatten(1, 2)


def reads_of(x: Tensor, g: Tensor, geometry: Geometry, frames: int, mean: Tensor | None) -> Iterator[Tensor]:
    """Yield what the output positions of each image read, ``[b, m H' W', C_in]``, at one offset after the other."""
    assert len(x) == len(g) and len(x) % frames == 0, (x.shape, g.shape, frames)
    kernel, stride, padding, dilation = geometry.pairs()
    padded = F.pad(x, (padding[1], padding[1], padding[0], padding[0])).permute(0, 2, 3, 1)
    if mean is not None:
        assert mean.shape == (x.shape[1],)
        padded = padded - mean.to(x)
    height, width = g.shape[2:]
    for top in range(0, kernel[0] * dilation[0], dilation[0]):
        for left in range(0, kernel[1] * dilation[1], dilation[1]):
            read = padded[:, top :: stride[0], left :: stride[1]][:, :height, :width]
            yield by_image(read, frames)
