"""Bins and widths: mirrored, as even as can be, and each bin is used as often as every other."""

from __future__ import annotations

import pytest
import torch

from hybridprune.pruning.methods.bcnet.bins import bins_of, complement, coverage, drawn_widths, edges

SIZES = [(1, 20), (2, 20), (3, 2), (7, 4), (16, 20), (17, 20), (64, 20), (65, 20), (37, 8), (20, 20)]


def bins_used(channels: int, bins: int, widths: list[int]) -> torch.Tensor:
    """``[channels]``: how many of the networks of these widths, left and right, have the channel."""
    both = coverage(channels, bins).long().sum(0)
    return sum((both[width - 1] for width in widths if width), torch.zeros(channels, dtype=torch.int64))


@pytest.mark.parametrize(("channels", "wanted"), SIZES)
def test_over_all_widths_each_bin_is_used_equally_often(channels: int, wanted: int) -> None:
    bins = bins_of(channels, wanted)
    assert bins in (wanted, channels) or (channels % 2, wanted % 2, bins) == (1, 0, wanted - 1)
    own = edges(channels, bins)
    sizes = torch.tensor(own).diff()
    assert len(own) == bins + 1 and (own[0], own[-1]) == (0, channels)
    assert sizes.tolist() == sizes.flip(0).tolist() and int(sizes.min()) >= 1
    assert int((sizes - channels / bins).abs().ceil().max()) <= 1
    for width in range(1, bins + 1):
        assert coverage(channels, bins)[:, width - 1].sum(1).tolist() == [own[width]] * 2
    widths = list(range(1, bins + 1))
    assert bins_used(channels, bins, widths).unique().tolist() == [bins + 1]
    # Beside each width what it leaves out, which is nothing beside the whole.
    rest = [bins - width for width in widths]
    assert bins_used(channels, bins, widths + rest).unique().tolist() == [2 * bins]
    for width in widths:
        pair = bins_used(channels, bins, [width, complement(width, bins)])
        assert pair.unique().tolist() == [2 if width < bins else 4]


def test_each_second_step_has_the_complements() -> None:
    bins = [4, 7, 1]
    seen: set[int] = set()
    for pair in range(40):
        first, second = (drawn_widths(bins, 3, 2 * pair + step) for step in (0, 1))
        assert all(1 <= width <= number for width, number in zip(first, bins, strict=True))
        assert second == [complement(*each) for each in zip(first, bins, strict=True)]
        seen.add(first[1])
    assert seen == set(range(1, 8))
    several = [[drawn_widths(bins, seed, 2 * pair) for pair in range(5)] for seed in (3, 3, 4)]
    assert several[0] == several[1] != several[2]
