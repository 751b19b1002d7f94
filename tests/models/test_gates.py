"""The kinds of gates, and the ways of making a decision of a logit."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from hybridprune.models.gates import (
    GATES,
    FeedForwardGate,
    RecurrentGate,
    above,
    greedy,
    logistic,
    soft,
    straight_through,
)

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
        features = torch.rand(2, channels, 3, 3, generator=generator)
        pooled = features.mean((2, 3))
        logit, state = gate(index, features, state)
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
    logit, _ = gate(0, torch.rand(50, 8, 2, 2), None)
    assert logit.sigmoid().mean().item() == pytest.approx(0.88, abs=0.05)


@pytest.mark.parametrize("kind", GATES)
def test_gates_stay_in_fp32_under_autocast(kind: str) -> None:
    torch.manual_seed(0)
    gate = GATES[kind]([8]).eval()
    features = torch.rand(5, 8, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        logit, _ = gate(0, features, None)
    assert torch.equal(logit, gate(0, features, None)[0])


@pytest.mark.parametrize(("kind", "size"), [("ff1", 4), ("ff2", 4), ("ff2", 7)])
def test_feed_forward_gates_are_convolutions_and_a_linear_layer(kind: str, size: int) -> None:
    torch.manual_seed(0)
    gate = GATES[kind]([3, 6]).eval()
    assert isinstance(gate, FeedForwardGate)
    features = torch.randn(2, 6, size, size)
    layers = gate.convolutions[1]
    x, strides = (F.max_pool2d(features, 2), (1, 2)) if kind == "ff1" else (features, (2,))
    convolutions = [layer for layer in layers.modules() if isinstance(layer, nn.Conv2d)]
    norms = [layer for layer in layers.modules() if isinstance(layer, nn.BatchNorm2d)]
    for convolution, norm, stride in zip(convolutions, norms, strides, strict=True):
        assert convolution.weight.shape[0] == 10
        mean = torch.randn(10)
        norm.load_state_dict({**norm.state_dict(), "running_mean": mean})
        x = F.conv2d(x, convolution.weight, stride=stride, padding=1)
        x = F.relu((x - mean.view(1, -1, 1, 1)) / (1 + norm.eps) ** 0.5)
    linear = gate.scores()[1]
    logit, hidden = gate(1, features, None)
    torch.testing.assert_close(logit, x.mean((2, 3)) @ linear.weight[0] + linear.bias)
    assert hidden is None and logit.shape == (2,)


@pytest.mark.parametrize("kind", GATES)
def test_a_shift_moves_every_logit_and_sharpening_divides_it(kind: str) -> None:
    torch.manual_seed(0)
    gate = GATES[kind]([3, 6]).eval()
    features = [torch.randn(4, 3, 4, 4), torch.randn(4, 6, 4, 4)]

    def logits() -> Tensor:
        hidden, found = None, []
        for index, x in enumerate(features):
            logit, hidden = gate(index, x, hidden)
            found.append(logit)
        return torch.stack(found)

    before = logits()
    gate.shift(-1.5)
    torch.testing.assert_close(logits(), before - 1.5)
    gate.sharpen(0.05)
    torch.testing.assert_close(logits(), (before - 1.5) / 0.05)
    assert list(GATES[kind]([]).parameters()) == [] and list(GATES[kind]([]).scores()) == []


def test_noise_makes_decisions_samples() -> None:
    torch.manual_seed(0)
    logits = torch.tensor([-2.0, -0.5, 0.0, 1.0, 3.0])
    drawn = greedy(logits + logistic(torch.rand(20_000, 5))).mean(0)
    torch.testing.assert_close(drawn, logits.sigmoid(), rtol=0, atol=0.015)
    assert logistic(torch.tensor([0.0, 0.5, 1.0])).isfinite().all()


def test_soft_gates_and_thresholds() -> None:
    logits = torch.tensor([-1.0, 0.0, 0.5, 2.0], requires_grad=True)
    assert torch.equal(soft(logits), logits.sigmoid()) and soft(logits).requires_grad
    assert above(0.5)(logits).tolist() == [0, 0, 0, 1] and not above(0.5)(logits).requires_grad
