"""A cascade: whole networks, cheap to dear, of which each image runs as many as it needs.

Gate k looks at what the members so far have answered and decides whether member k + 1 runs. Stopping is final. The
answer is that of the last member that ran, or the mean of the logits of all that ran, each member's divided by its
temperature (Guo et al. 2017). A member may go on from features of the member before it: they share a trunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from hybridprune.models.confidence import ConfidenceGate
from hybridprune.models.gates import Hidden
from hybridprune.models.routed import Mode, RoutedNetwork, images_at
from hybridprune.models.trunk import Tail, fork, run_until, trunk_names

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
    trunk: Tensor | None
    """Features ``[B, C, H, W]`` that the next member goes on from, 0 for images that have stopped; else None."""


class Cascade(RoutedNetwork):
    """``members`` that give logits of the same classes, with a gate behind each but the last.

    A member that is a `Tail` of trunk k goes on from the features that the member before it had before its block k.
    """

    body = "members"

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
    def trunks(self) -> tuple[int, ...]:
        """The blocks that each member shares with the one before it; 0 where it takes the images, as the first does."""
        return tuple(member.trunk if isinstance(member, Tail) else 0 for member in self.members)

    @property
    def shares_trunk(self) -> bool:
        """Whether a member goes on from another's features, so that it is no network of its own."""
        return any(self.trunks)

    @property
    def trunk_modules(self) -> list[str]:
        """Names of the modules that more than one member runs."""
        pairs = zip(self.members, self.trunks[1:], strict=False)
        return [
            f"members.{k}.{name}" for k, (member, end) in enumerate(pairs) if end for name in trunk_names(member, end)
        ]

    def parts(self) -> list[tuple[nn.Module, ...]]:
        """The modules that each member consists of: itself, or copies of the trunk of the next one and of the rest."""
        ends = (*self.trunks[1:], 0)
        return [fork(member, end) if end else (member,) for member, end in zip(self.members, ends, strict=True)]

    @property
    def observation_size(self) -> int:
        """Numbers of an answer that the gates read."""
        return self.gate.inputs

    def start(self, images: Tensor) -> CascadeState:
        """Run member 0 on ``[B, 3, H, W]`` images."""
        logits, trunk = self._run(0, images)
        return CascadeState(images, logits, torch.ones_like(logits[:, 0]), 0, trunk)

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
        images, before, _, gate, features = state
        assert decision.shape == images.shape[:1], (decision.shape, images.shape)
        inputs = images if self.trunks[gate + 1] == 0 else features
        if inputs is None:  # no image has come as far as to have features
            return CascadeState(images, before, decision, gate + 1, None)
        if mode == "masked":
            logits, trunk = self._run(gate + 1, inputs)
            after = self._answer(before, logits, gate)
            answer = torch.lerp(before, after, decision.to(before.dtype).unsqueeze(1))
        else:
            answer, trunk = self._executed(inputs, before, decision, gate)
        return CascadeState(images, answer, decision, gate + 1, trunk)

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

    def own_logits(self, images: Tensor) -> Tensor:
        """Each member's own logits for all images, ``[K, B, classes]``, whatever the gates say; a trunk is run once."""
        found: list[Tensor] = []
        trunk: Tensor | None = None
        for member in range(len(self.members)):
            logits, trunk = self._own(member, images if trunk is None else trunk)
            found.append(logits)
        return torch.stack(found)

    def _executed(self, inputs: Tensor, before: Tensor, decision: Tensor, gate: int) -> tuple[Tensor, Tensor | None]:
        """The images are partitioned once; nothing is copied when all or none go on."""
        chosen = decision.nonzero().squeeze(1)
        if len(chosen) == 0:
            return before, None
        if len(chosen) == len(inputs):
            logits, trunk = self._run(gate + 1, inputs)
            return self._answer(before, logits, gate), trunk
        logits, trunk = self._run(gate + 1, images_at(inputs, chosen))
        if trunk is not None:
            trunk = trunk.new_zeros(len(inputs), *trunk.shape[1:]).index_copy(0, chosen, trunk)
        return before.index_copy(0, chosen, self._answer(before[chosen], logits, gate)), trunk

    def _run(self, member: int, inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """A member's calibrated logits for images or its trunk's features, and what the next one goes on from."""
        logits, trunk = self._own(member, inputs)
        return logits / self.temperatures[member], trunk

    def _own(self, member: int, inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """As `_run`, with the logits as the member gives them, in fp32."""
        after = self.members[member + 1] if member < self.num_gates else None
        if isinstance(after, Tail):
            trunk, logits = run_until(self.members[member], inputs, after.trunk)
        else:
            trunk, logits = None, self.members[member](inputs)
        assert logits.shape == (len(inputs), self.classes), (logits.shape, self.classes)
        return logits.float(), trunk

    def _answer(self, before: Tensor, logits: Tensor, gate: int) -> Tensor:
        """The answer with the one of member ``gate + 1`` in it."""
        return logits if self.answer == "last" else before + (logits - before) / (gate + 2)
