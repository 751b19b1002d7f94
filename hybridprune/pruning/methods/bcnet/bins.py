"""Bins of channels and the widths that are made of them, from the left and from the right (pure; Su et al. 2021).

Of K bins, the width c is the c leftmost and, equally, the c rightmost ones. So over all widths each bin is used
``(K - b + 1) + b = K + 1`` times, whatever its place b: all channels are trained alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hybridprune.store.seeds import generator

LEFT, RIGHT = 0, 1


def bins_of(channels: int, wanted: int) -> int:
    """The bins of so many channels: as many as wanted, but no more than channels, and an odd number of odd ones.

    An even number of bins cannot mirror an odd number of channels.
    """
    bins = min(wanted, channels)
    return bins - 1 if channels % 2 and bins % 2 == 0 else bins


def edges(channels: int, bins: int) -> list[int]:
    """The channels of the widths 0 to ``bins``, ascending: as even as integers can be, and mirrored.

    ``edges[bins - c] = channels - edges[c]``, so that a width has as many channels on the left as on the right.
    """
    left = [(2 * c * channels + bins) // (2 * bins) for c in range(bins // 2 + 1)]
    right = [channels - edge for edge in reversed(left)]
    return left + right[1 if bins % 2 == 0 else 0 :]


def coverage(channels: int, bins: int) -> Tensor:
    """The channels that each width from 1 has, ``[2, bins, channels]``, bool: from the left and from the right."""
    counts = torch.tensor(edges(channels, bins)[1:])[:, None]
    number = torch.arange(channels)
    return torch.stack([number < counts, number >= channels - counts])


def complement(width: int, bins: int) -> int:
    """The width of the bins that ``width`` leaves out: ``bins - width``, but all again where it leaves out none.

    What the left misses is the complement on the right, so in two such steps each bin is used twice, or four times.
    """
    return bins - width or bins


def drawn_widths(bins: Sequence[int], seed: int, step: int) -> list[int]:
    """The width of each group in a training step, in bins: uniform in 1 to K, in each second step the complements."""
    source = generator(seed, "widths", step // 2)
    widths = [int(torch.randint(1, number + 1, (), generator=source)) for number in bins]
    return widths if step % 2 == 0 else [complement(*each) for each in zip(widths, bins, strict=True)]
