# pyright: strict
"""Channels above a quantile of their scores (pure)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def above_quantile(scores: Sequence[Tensor], share: float, *, by_layer: bool, least: int) -> list[Tensor]:
    """Masks of the channels that stay, bool ``[C_i]`` for each layer's scores ``[C_i]``.

    A channel stays if its score is strictly greater than the ``share`` quantile (linearly interpolated) of all
    scores or, ``by_layer``, of its layer's. Each layer keeps at least its ``least`` best, the first of equals; with a
    share of 0 all stay.
    """
    assert 0 <= share <= 1 and all(s.ndim == 1 for s in scores)
    if share == 0:
        return [torch.ones_like(s, dtype=torch.bool) for s in scores]
    values = [s.double() for s in scores]
    pools = values if by_layer else [torch.cat(values)] * len(values)
    return [_kept(layer, pool.quantile(share), least) for layer, pool in zip(values, pools, strict=True)]


def _kept(scores: Tensor, threshold: Tensor, least: int) -> Tensor:
    kept = scores > threshold
    kept[scores.argsort(descending=True, stable=True)[:least]] = True
    return kept
