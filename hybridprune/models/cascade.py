"""A cascade: whole networks, cheap to dear, of which each image runs as many as it needs.

Gate k looks at what the members so far have answered and decides whether member k + 1 runs. Stopping is final. The
answer is that of the last member that ran, or the mean of the logits of all that ran, each member's divided by its
temperature (Guo et al. 2017).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from hybridprune.models.confidence import ConfidenceGate
from hybridprune.models.gates import Hidden
from hybridprune.models.routed import Mode, RoutedNetwork, images_at

Answer = Literal["average", "last"]


class CascadeState(NamedTuple):
    """Between two members: what they have answered."""

    images: Tensor
    """``[B, 3, H, W]``"""
    features: Tensor
    """The answer so far, logits ``[B, classes]`` in fp32."""
    going: Tensor
    """``[B]``, 1 where no gate has stopped."""
    gate: int
    """The gate that decides next; members 0 to ``gate`` are behind us."""


class Cascade(RoutedNetwork):
    """``members`` that give logits of the same classes, with a gate behind each but the last."""

    def __init__(self, members: Sequence[nn.Module], classes: int, answer: Answer = "average") -> None:
        super().__init__()
        assert len(members) > 0
        self.members = nn.ModuleList(members)
        self.answer: Answer = answer
        self.classes = classes
        self.gate = ConfidenceGate(len(members) - 1, classes)
        self.register_buffer("temperatures", torch.ones(len(members)))
        self.temperatures: Tensor

    @property
    def num_gates(self) -> int:
        """N, one less than there are members."""
        return len(self.members) - 1

    @property
    def observation_size(self) -> int:
        """Numbers of an answer that the gates read."""
        return self.gate.inputs

    def start(self, images: Tensor) -> CascadeState:
        """Run member 0 on ``[B, 3, H, W]`` images."""
        logits = self._logits(0, images)
        return CascadeState(images, logits, torch.ones_like(logits[:, 0]), 0)

    def ask(self, state: CascadeState, hidden: Hidden | None, constant: bool = False) -> tuple[Tensor, Hidden | None]:
        """The next gate's logits ``[B]``; -inf for images that have stopped."""
        logit, hidden = super().ask(state, hidden, constant)
        return torch.where(state.going > 0, logit, -torch.inf), hidden

    def allowed(self, state: CascadeState, decision: Tensor) -> Tensor:
        """``decision [B]``, and 0 where an image has stopped."""
        return decision * state.going.to(decision.dtype)

    def observe(self, state: CascadeState) -> Tensor:
        """The `confidence` of the answer so far, ``[B, D]``, which the gates read."""
        return self.gate.read(state.features)

    def advance(self, state: CascadeState, decision: Tensor, mode: Mode) -> CascadeState:
        """Run the next member on all images and blend (masked), or on those that chose it."""
        images, before, _, gate = state
        assert decision.shape == images.shape[:1], (decision.shape, images.shape)
        if mode == "masked":
            after = self._answer(before, self._logits(gate + 1, images), gate)
            answer = torch.lerp(before, after, decision.to(before.dtype).unsqueeze(1))
        else:
            answer = self._executed(images, before, decision, gate)
        return CascadeState(images, answer, decision, gate + 1)

    def finish(self, state: CascadeState) -> Tensor:
        """The answer, logits ``[B, classes]``."""
        assert state.gate == self.num_gates
        return state.features

    def answers(self, logits: Tensor) -> Tensor:
        """The answer behind each member, ``[K, B, classes]``, from the members' own logits, ``[K, B, classes]``."""
        calibrated = logits / self.temperatures.view(-1, 1, 1)
        answer = calibrated[0]
        found = [answer]
        for gate in range(self.num_gates):
            answer = self._answer(answer, calibrated[gate + 1], gate)
            found.append(answer)
        return torch.stack(found)

    def _executed(self, images: Tensor, before: Tensor, decision: Tensor, gate: int) -> Tensor:
        """The images are partitioned once; nothing is copied when all or none go on."""
        chosen = decision.nonzero().squeeze(1)
        if len(chosen) == 0:
            return before
        if len(chosen) == len(images):
            return self._answer(before, self._logits(gate + 1, images), gate)
        after = self._answer(before[chosen], self._logits(gate + 1, images_at(images, chosen)), gate)
        return before.index_copy(0, chosen, after)

    def _logits(self, member: int, images: Tensor) -> Tensor:
        logits = self.members[member](images)
        assert logits.shape == (len(images), self.classes), (logits.shape, self.classes)
        return logits.float() / self.temperatures[member]

    def _answer(self, before: Tensor, logits: Tensor, gate: int) -> Tensor:
        """The answer with the one of member ``gate + 1`` in it."""
        return logits if self.answer == "last" else before + (logits - before) / (gate + 2)
