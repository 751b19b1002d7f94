"""Gates that read how sure a network is of its answer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hybridprune.models.gates import Gate, Hidden

TOP = 5
STEEP = 3.0
"""Logits for a factor e of the doubt, in the policy that a gate starts from."""
START = 0.5
"""The margin below which images go on, in the policy that a gate starts from."""
LEAST = -60.0
"""Logarithms that are read go no lower."""


def confidence(logits: Tensor) -> Tensor:
    """The confidence of answers, ``[B, classes]`` to ``[B, 3 + T]`` with ``T = min(5, classes)``.

    With the probabilities p_1 >= p_2 >= ... of C classes: log(1 - (p_1 - p_2)), the logarithm of what the margin lacks
    of 1; p_1; the entropy over log C; and log p_1, ..., log p_T over log C. Logarithms tell sure answers apart whose
    margins all round to 1. None is below -60.
    """
    assert logits.ndim == 2, logits.shape
    # Few operations: at one image these, not their FLOPs, are what a gate costs.
    scale = math.log(max(logits.shape[1], 2))
    logs = logits.float().log_softmax(1)
    top, where = logs.topk(min(TOP, logits.shape[1]), 1)
    probabilities, best = logs.exp(), top[:, :2].exp()
    second = best[:, 1:] if best.shape[1] > 1 else torch.zeros_like(best)
    # 1 - p_1 + p_2, as a sum of small numbers: the difference of the large ones would round to 0.
    doubt = probabilities.scatter(1, where[:, :1], second).sum(1, keepdim=True).clamp(min=math.exp(LEAST)).log()
    entropy = (probabilities * logs.clamp(min=LEAST)).sum(1, keepdim=True) / -scale
    return torch.cat([doubt, best[:, :1], entropy, top.clamp(min=LEAST) / scale], 1)


class ConfidenceGate(Gate):
    """Linear gates of a cascade on the `confidence` of the answer so far; each starts as a threshold on the margin.

    A gate's logit is that of going on to the next member: ``3 log(2 (1 - margin))`` at first, above 0 for a margin
    below 1/2.
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
            nn.init.constant_(layer.weight[:, 0], STEEP)
            nn.init.constant_(layer.bias, -STEEP * math.log(1 - START))

    def read(self, answer: Tensor) -> Tensor:
        """The numbers that are read of an answer ``[B, classes]``."""
        return confidence(answer)

    def decide(self, index: int, features: Tensor, hidden: Hidden | None) -> tuple[Tensor, Hidden | None]:
        return self.linears[index](self.read(features)).squeeze(1), None

    def scores(self) -> Sequence[nn.Linear]:
        return [layer for layer in self.linears if isinstance(layer, nn.Linear)]
