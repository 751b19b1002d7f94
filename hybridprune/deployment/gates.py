"""Gates for inference: the same logits with as few operations as it goes.

At one image the small operations of the gates, not their FLOPs, are what they cost.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridprune.models.confidence import ConfidenceGate, confidence
from hybridprune.models.gates import FeedForwardGate, Gate, Hidden, RecurrentGate


class SingleGate(nn.Module):
    """One gate by itself: features ``[B, C, H, W]`` and the hidden state of the gate before to logits ``[B]``."""

    def forward(self, features: Tensor, hidden: Hidden | None) -> tuple[Tensor, Hidden | None]:
        """The gate's logits and hidden state, in fp32 whatever the autocast, as in training."""
        if not torch.is_autocast_enabled(features.device.type):
            return self.decide(features, hidden)
        with torch.autocast(features.device.type, enabled=False):
            return self.decide(features.float(), hidden)

    def decide(self, features: Tensor, hidden: Hidden | None) -> tuple[Tensor, Hidden | None]:
        """``forward`` of one kind of gate."""
        raise NotImplementedError


class CellGate(SingleGate):
    """A gate of `RecurrentGate`: its embedding is multiplied into the LSTM cell's input weights."""

    def __init__(self, gate: RecurrentGate, index: int) -> None:
        super().__init__()
        cell, embedding = gate.cell, gate.embeddings[index]
        assert isinstance(embedding, nn.Linear)
        weight = cell.weight_ih.detach().double()
        bias = weight @ embedding.bias.detach().double() + cell.bias_ih.detach().double()
        self.weight_ih = nn.Parameter((weight @ embedding.weight.detach().double()).to(cell.weight_ih.dtype))
        self.bias_ih = nn.Parameter(bias.to(cell.bias_ih.dtype))
        # Shared by all gates.
        self.weight_hh, self.bias_hh = cell.weight_hh, cell.bias_hh
        self.score: nn.Linear | None = gate.score
        """None: it decides nothing any more, but goes on to feed the state of the gates behind it."""

    def decide(self, features: Tensor, hidden: Hidden | None) -> tuple[Tensor, Hidden | None]:
        state = self.step(features, hidden)
        if self.score is None:
            return state[0], state
        # Not called as a module: that takes as long again.
        return F.linear(state[0], self.score.weight, self.score.bias).squeeze(1), state

    def step(self, features: Tensor, hidden: Hidden | None) -> Hidden:
        """The cell's next state."""
        pooled = features.mean(dim=(2, 3))
        if hidden is None:
            nothing = pooled.new_zeros(pooled.shape[0], self.weight_hh.shape[1])
            hidden = nothing, nothing
        return torch.lstm_cell(pooled, hidden, self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)


class ConvolutionGate(SingleGate):
    """A gate of `FeedForwardGate`; it has no state."""

    def __init__(self, gate: FeedForwardGate, index: int) -> None:
        super().__init__()
        self.convolutions, self.linear = gate.convolutions[index], gate.linears[index]

    def decide(self, features: Tensor, hidden: Hidden | None) -> tuple[Tensor, Hidden | None]:
        return self.linear(self.convolutions(features).mean(dim=(2, 3))).squeeze(1), None


class AnswerGate(SingleGate):
    """A gate of `ConfidenceGate`; it has no state, and its features are an answer, ``[B, classes]``."""

    def __init__(self, gate: ConfidenceGate, index: int) -> None:
        super().__init__()
        self.score = gate.scores()[index]

    def decide(self, features: Tensor, hidden: Hidden | None) -> tuple[Tensor, Hidden | None]:
        return F.linear(confidence(features), self.score.weight, self.score.bias).squeeze(1), None


class OtherGate(SingleGate):
    """A gate of any other kind, as it is."""

    def __init__(self, gate: Gate, index: int) -> None:
        super().__init__()
        self.gate, self.index = gate, index

    def decide(self, features: Tensor, hidden: Hidden | None) -> tuple[Tensor, Hidden | None]:
        return self.gate.decide(self.index, features, hidden)


def single_gate(gate: Gate, index: int) -> SingleGate:
    """Gate ``index`` of ``gate`` for inference."""
    if isinstance(gate, RecurrentGate):
        return CellGate(gate, index)
    if isinstance(gate, FeedForwardGate):
        return ConvolutionGate(gate, index)
    if isinstance(gate, ConfidenceGate):
        return AnswerGate(gate, index)
    return OtherGate(gate, index)
