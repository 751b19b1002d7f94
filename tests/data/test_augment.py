from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridprune.data import crop_flip, normalise


@st.composite
def _draws(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    batch, padding = draw(st.integers(1, 6)), draw(st.integers(0, 5))
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    images = torch.randint(256, (batch, 3, height, width), dtype=torch.uint8, generator=generator)
    offset = st.integers(0, 2 * padding)
    offsets = torch.tensor(draw(st.lists(st.tuples(offset, offset), min_size=batch, max_size=batch)))
    flips = torch.tensor(draw(st.lists(st.booleans(), min_size=batch, max_size=batch)))
    return images, offsets, flips, padding


@settings(deadline=None)
@given(_draws())
def test_crop_flip_equals_slicing_each_image(
    draws: tuple[torch.Tensor, torch.Tensor, torch.Tensor, int],
) -> None:
    images, offsets, flips, padding = draws
    height, width = images.shape[2:]
    result = crop_flip(images, offsets, flips, padding)
    assert result.dtype == torch.uint8 and result.shape == images.shape
    for number, image in enumerate(images):
        canvas = torch.zeros(3, height + 2 * padding, width + 2 * padding, dtype=torch.uint8)
        canvas[:, padding : padding + height, padding : padding + width] = image
        top, left = offsets[number].tolist()
        expected = canvas[:, top : top + height, left : left + width]
        if flips[number]:
            expected = expected[:, :, range(width - 1, -1, -1)]
        assert torch.equal(result[number], expected)


def test_crop_flip_refuses_draws_that_do_not_match_the_batch() -> None:
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(AssertionError):
        crop_flip(images, torch.zeros(1, 2, dtype=torch.int64), torch.zeros(4, dtype=torch.bool), 1)


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_normalise_equals_the_formula_in_double(memory_format: torch.memory_format) -> None:
    values = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(2, 3, 1, 1)
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.01)
    result = normalise(values, mean, std, memory_format)
    assert result.dtype == torch.float32 and result.is_contiguous(memory_format=memory_format)
    for channel in range(3):
        for value in range(256):
            expected = (value / 255 - mean[channel]) / std[channel]
            got = result[1, channel, value // 16, value % 16].item()
            assert got == pytest.approx(expected, rel=1e-5, abs=1e-4)


def test_normalise_rounds_only_the_result_to_a_short_type() -> None:
    values = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(1, 3, 1, 1)
    arguments = (values, (0.5,) * 3, (0.25,) * 3, torch.contiguous_format)
    assert torch.equal(normalise(*arguments, dtype=torch.bfloat16), normalise(*arguments).to(torch.bfloat16))
