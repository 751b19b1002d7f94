"""The recurrent gate and the two ways of making a decision of its logit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hybridprune.models.gates import RecurrentGate, greedy, straight_through

logits = st.lists(st.integers(-60, 60), min_size=1, max_size=8).map(lambda quarters: torch.tensor(quarters) / 4)


@given(logits)
def test_straight_through_has_the_sigmoids_gradient(values: Tensor) -> None:
    through, smooth = values.clone().requires_grad_(), values.clone().double().requires_grad_()
    weights = torch.arange(1, len(values) + 1)
    decision = straight_through(through)
    (decision * weights).sum().backward()
    (smooth.sigmoid() * weights).sum().backward()
    assert through.grad is not None and smooth.grad is not None
    torch.testing.assert_close(through.grad.double(), smooth.grad, rtol=1e-5, atol=1e-6)
    assert torch.equal(decision.detach(), (values.sigmoid() > 0.5).float())


@given(logits)
def test_greedy_decides_alike_without_gradient(values: Tensor) -> None:
    decision = greedy(values.clone().requires_grad_())
    assert torch.equal(decision, straight_through(values)) and not decision.requires_grad


def test_a_probability_of_one_half_skips() -> None:
    assert greedy(torch.zeros(1)).item() == straight_through(torch.zeros(1)).item() == 0


def test_gate_is_an_lstm_step_on_its_own_embedding() -> None:
    torch.manual_seed(0)
    gate = RecurrentGate([3, 6], size=4)
    generator = torch.Generator().manual_seed(0)
    hidden, memory = torch.zeros(2, 4), torch.zeros(2, 4)
    state = None
    for index, channels in enumerate([3, 6]):
        pooled = torch.rand(2, channels, generator=generator)
        logit, state = gate(index, pooled, state)
        # Hochreiter & Schmidhuber's cell with forget gates, in torch's order of the four.
        cell = gate.cell
        embedded = gate.embeddings[index](pooled)
        sums = embedded @ cell.weight_ih.T + cell.bias_ih + hidden @ cell.weight_hh.T + cell.bias_hh
        write, forget, content, read = sums.chunk(4, 1)
        memory = forget.sigmoid() * memory + write.sigmoid() * content.tanh()
        hidden = read.sigmoid() * memory.tanh()
        expected = hidden @ gate.score.weight[0] + gate.score.bias
        assert logit.shape == (2,)
        torch.testing.assert_close(logit, expected)


def test_gates_are_open_at_first() -> None:
    torch.manual_seed(0)
    gate = RecurrentGate([8])
    logit, _ = gate(0, torch.rand(50, 8), None)
    assert logit.sigmoid().mean().item() == pytest.approx(0.88, abs=0.05)


def test_gate_stays_in_fp32_under_autocast() -> None:
    torch.manual_seed(0)
    gate = RecurrentGate([8])
    pooled = torch.rand(5, 8)
    with torch.autocast("cpu", torch.bfloat16):
        logit, _ = gate(0, pooled, None)
    assert torch.equal(logit, gate(0, pooled, None)[0])
