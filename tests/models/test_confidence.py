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
        doubt = math.log(1 - p[0] + p[1]) if classes > 1 else -60
        entropy = -sum(each * math.log(each) for each in p) / scale
        expected = [doubt, p[0], entropy, *(math.log(each) / scale for each in p[:5])]
        assert found == pytest.approx(expected, abs=1e-4)


def test_certainty_is_finite() -> None:
    sure = confidence(torch.tensor([[1e4, 0.0, 0.0]]))
    assert sure[0, :3].tolist() == [-60, 1, 0] and sure.isfinite().all()
    assert sure[0, 3:].tolist() == pytest.approx([0, -60 / math.log(3), -60 / math.log(3)])


def test_certainty_has_a_gradient() -> None:
    logits = torch.tensor([[1e4, 0.0, 0.0], [1.0, 0.5, 0.0]], requires_grad=True)
    confidence(logits).sum().backward()
    assert logits.grad is not None and logits.grad.isfinite().all() and logits.grad[1].abs().sum() > 0


def test_sure_answers_are_told_apart_where_their_margins_round_to_one() -> None:
    answers = torch.tensor([[30.0, 0.0, 0.0], [40.0, 0.0, 0.0], [40.0, 5.0, 0.0]])
    probabilities = answers.softmax(1).topk(2, 1).values
    assert (probabilities[:, 0] - probabilities[:, 1] == 1).all()
    doubt = confidence(answers)[:, 0]
    assert doubt.tolist() == pytest.approx([math.log(3) - 30, math.log(3) - 40, math.log(2 + math.exp(-5)) - 35])
