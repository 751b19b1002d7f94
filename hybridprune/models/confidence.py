"""Gates that read how sure a network is of its answer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hybridprune.models.gates import Gate, Hidden

TOP = 5
STEEP = 10.0
"""Logits for the whole range of the margin, in the policy that a gate starts from."""
START = 0.5
"""The margin below which images go on, in the policy that a gate starts from."""
LEAST = 1e-12


def confidence(logits: Tensor) -> Tensor:
    """The confidence of answers, ``[B, classes]`` to ``[B, 3 + T]`` with ``T = min(5, classes)``.

    With the probabilities p_1 >= p_2 >= ... of C classes: margin p_1 - p_2, p_1, the entropy over log C, and log p_1,
    ..., log p_T over log C, none below log 1e-12. Of one class, margin 1 and entropy 0.
    """
    assert logits.ndim == 2, logits.shape
    probabilities = logits.float().softmax(1)
    top = probabilities.topk(min(TOP, logits.shape[1]), 1).values
    first = top[:, 0]
    margin = first - top[:, 1] if logits.shape[1] > 1 else torch.ones_like(first)
    scale = math.log(max(logits.shape[1], 2))
    entropy = -(probabilities * probabilities.clamp(min=LEAST).log()).sum(1) / scale
    return torch.cat([torch.stack([margin, first, entropy], 1), top.clamp(min=LEAST).log() / scale], 1)


class ConfidenceGate(Gate):
    """Linear gates of a cascade on the `confidence` of the answer so far; each starts as a threshold on the margin.

    A gate's logit is that of going on to the next member: ``10 (1/2 - margin)`` at first.
    """

    def __init__(self, gates: int, classes: int) -> None:
        super().__init__()
        self.inputs = 3 + min(TOP, classes)
        self.linears = nn.ModuleList(nn.Linear(self.inputs, 1) for _ in range(gates))
        self.open()

    def open(self) -> None:
        """Put every gate back to the threshold on the margin."""
        for layer in self.scores():
            nn.init.zeros_(layer.weight)
            nn.init.constant_(layer.weight[:, 0], -STEEP)
            nn.init.constant_(layer.bias, STEEP * START)

    def read(self, answer: Tensor) -> Tensor:
        """The numbers that are read of an answer ``[B, classes]``."""
        return confidence(answer)

    def decide(self, index: int, features: Tensor, hidden: Hidden | None) -> tuple[Tensor, Hidden | None]:
        return self.linears[index](self.read(features)).squeeze(1), None

    def scores(self) -> Sequence[nn.Linear]:
        return [layer for layer in self.linears if isinstance(layer, nn.Linear)]
