"""Entries that see more than padding, against the gradients of layers with positive inputs and weights."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hybridprune.measure.effective import live_weights
from hybridprune.measure.padding import seen_entries

two = st.tuples(st.integers(1, 3), st.integers(1, 3))


def by_gradient(conv: nn.Conv2d | nn.ConvTranspose2d, image: Tensor) -> Tensor:
    """Which entries move any output."""
    nn.init.ones_(conv.weight)
    conv(image).sum().backward()
    assert conv.weight.grad is not None
    return conv.weight.grad.flatten() > 0


@settings(max_examples=60, deadline=None)
@given(
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=two,
    dilation=two,
    pad=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    kind=st.sampled_from([nn.Conv2d, nn.ConvTranspose2d]),
)
def test_what_is_seen_has_a_gradient(
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    pad: tuple[int, int],
    size: tuple[int, int],
    kind: type[nn.Conv2d | nn.ConvTranspose2d],
) -> None:
    conv = kind(1, 1, kernel, stride, pad, dilation=dilation, bias=False).double()
    image = torch.ones(1, 1, *size, dtype=torch.float64)
    try:
        outputs = conv(image).shape
    except RuntimeError:  # nothing is left of the image
        assume(False)
        raise
    assert torch.equal(seen_entries(conv, image.shape, outputs), by_gradient(conv, image))


@pytest.mark.parametrize(("padding", "mode", "seen"), [("same", "zeros", 1), (1, "circular", 9), (1, "replicate", 9)])
def test_padding_that_repeats_the_image_is_seen(
    padding: str | int, mode: Literal["zeros", "circular", "replicate"], seen: int
) -> None:
    conv = nn.Conv2d(1, 1, 3, padding=padding, padding_mode=mode, bias=False).double()
    image = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    assert int(seen_entries(conv, image.shape, image.shape).sum()) == int(by_gradient(conv, image).sum()) == seen


class PadsItself(nn.Conv2d):
    """As some packages pad to whatever size they want."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(nn.functional.pad(input, (2, 2, 2, 2), value=1.0))


def test_what_pads_by_itself_is_given_the_benefit_of_the_doubt() -> None:
    conv = PadsItself(1, 1, 3, padding=1)
    assert bool(seen_entries(conv, torch.Size([1, 1, 1, 1]), torch.Size([1, 1, 5, 5])).all())


def test_weights_on_padding_and_kernels_without_others_do_not_live() -> None:
    layers = [nn.Conv2d(a, b, 3, 2, 1, bias=False) for a, b in pairwise((3, 4, 5, 2))]
    net = nn.Sequential(*layers)  # maps of 4, 2, 1 and 1 positions a side
    for layer in layers:
        nn.init.ones_(layer.weight)
    assert live_weights(net, torch.ones(1, 3, 4, 4)) == {"0": 9 * 12, "1": 4 * 20, "2": 10}
    layers[2].weight.data[0, 3, 1, 1] = 0  # its other entries do not see anything
    assert live_weights(net, torch.ones(1, 3, 4, 4)) == {"0": 9 * 12, "1": 4 * 20, "2": 9}
    layers[2].weight.data[1, 3, 1, 1] = 0
    assert live_weights(net, torch.ones(1, 3, 4, 4)) == {"0": 9 * 12, "1": 4 * 16, "2": 8}
