"""Entries of kernels that see more than padding, by the geometry of the layer alone (pure)."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

OWN = {getattr(nn, f"{kind}{n}d").forward for kind in ("Conv", "ConvTranspose") for n in (1, 2, 3)}
"""What torch computes; who writes a forward of his own may pad by himself."""


def seen_entries(conv: _ConvNd, inputs: torch.Size, outputs: torch.Size) -> Tensor:
    """Entries ``[area]``, bool, of the layer's kernels that at some position multiply an input, not its zero padding.

    Along one axis, entry k at output p of a convolution reads the input ``p stride + k dilation - padding``. Of a
    transposed one it carries input p to the output of that number. It is seen if that lies within the input, or output.

    Args:
        inputs: the shape ``[..., H, W]`` of what the layer reads; as many spatial axes as it has.
        outputs: the shape of what it gives.
    """
    axes = len(conv.kernel_size)
    if conv.padding_mode != "zeros" or type(conv).forward not in OWN:
        return torch.ones(conv.kernel_size, dtype=torch.bool).flatten()
    seen = []
    for axis in range(axes):
        inside, steps = inputs[axis - axes], outputs[axis - axes]
        before = conv._reversed_padding_repeated_twice[2 * (axes - 1 - axis)]  # pairs, of the last axis first
        if isinstance(conv, _ConvTransposeNd):
            inside, steps = steps, inside
        place = torch.arange(steps) * conv.stride[axis] - int(before)
        read = place[:, None] + torch.arange(conv.kernel_size[axis]) * conv.dilation[axis]
        seen.append(((read >= 0) & (read < inside)).any(0))
    return reduce(lambda rest, own: rest[..., None] & own, seen).flatten()
