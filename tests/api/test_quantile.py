"""Channels above a quantile, against NumPy's quantile and counting."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hybridprune.api.quantile import above_quantile

LAYERS = st.lists(st.lists(st.integers(0, 8).map(lambda n: n / 4), min_size=1, max_size=12), min_size=1, max_size=5)


def kept(layers: list[list[float]], share: float, by_layer: bool = False, least: int = 3) -> list[list[int]]:
    masks = above_quantile([torch.tensor(layer) for layer in layers], share, by_layer=by_layer, least=least)
    assert all(mask.dtype == torch.bool for mask in masks)
    return [mask.nonzero().flatten().tolist() for mask in masks]


@given(layers=LAYERS, share=st.sampled_from([0.1, 0.25, 0.5, 0.77, 0.9, 1.0]), by_layer=st.booleans())
def test_against_numpy(layers: list[list[float]], share: float, by_layer: bool) -> None:
    everything = np.concatenate([np.asarray(layer) for layer in layers])
    for layer, chosen in zip(layers, kept(layers, share, by_layer), strict=True):
        threshold = np.quantile(np.asarray(layer) if by_layer else everything, share)
        above = [i for i, score in enumerate(layer) if score > threshold]
        best = sorted(range(len(layer)), key=lambda i: (-layer[i], i))[:3]
        assert chosen == (above if len(above) >= 3 else sorted(best))


def test_global_and_by_layer() -> None:
    layers = [[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8], [1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8]]
    assert kept(layers, 0.5) == [[5, 6, 7], list(range(8))]  # the first layer has its three best left
    assert kept(layers, 0.5, by_layer=True) == [[4, 5, 6, 7]] * 2


def test_equal_scores_are_not_above_themselves() -> None:
    assert kept([[0.5] * 10, [0.5] * 8 + [0.9, 0.9, 0.9]], 0.5) == [[0, 1, 2], [8, 9, 10]]
    assert kept([[0.0, 1.0, 1.0, 1.0, 2.0]], 0.5, least=1) == [[4]]


@pytest.mark.parametrize(("share", "expected"), [(0.0, [0, 1, 2, 3, 4]), (1.0, [2, 3, 4])])
def test_nothing_and_everything(share: float, expected: list[int]) -> None:
    assert kept([[0.1, 0.2, 0.3, 0.4, 0.5]], share) == [expected]
    assert kept([[0.1, 0.2]], share) == [[0, 1]]  # fewer than three are all kept


def test_scores_of_any_precision_are_left_alone() -> None:
    scores: Tensor = torch.tensor([0.3, 0.1, 0.2, 0.4], dtype=torch.float16)
    before = scores.clone()
    assert above_quantile([scores], 0.5, by_layer=True, least=1)[0].tolist() == [True, False, False, True]
    assert scores.equal(before)
