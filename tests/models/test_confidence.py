"""What gates read of an answer, against the definitions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hybridprune.models.confidence import confidence


@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 99))
def test_is_what_it_says(classes: int, batch: int, seed: int) -> None:
    logits = 4 * torch.randn(batch, classes, generator=torch.Generator().manual_seed(seed))
    for row, found in zip(logits.tolist(), confidence(logits).tolist(), strict=True):
        whole = sum(math.exp(value) for value in row)
        p = sorted((math.exp(value) / whole for value in row), reverse=True)
        scale = math.log(max(classes, 2))
        margin = p[0] - p[1] if classes > 1 else 1.0
        entropy = -sum(each * math.log(each) for each in p) / scale
        expected = [margin, p[0], entropy, *(math.log(each) / scale for each in p[:5])]
        assert found == pytest.approx(expected, abs=1e-4)


def test_certainty_is_finite() -> None:
    sure = confidence(torch.tensor([[1e4, 0.0, 0.0]]))
    assert sure[0, :3].tolist() == [1, 1, 0] and sure.isfinite().all()
