"""The deployed form of a cascade: deployed members, and gates of few operations."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from hybridprune.deployment.gates import SingleGate, single_gate
from hybridprune.deployment.network import DeployedNetwork
from hybridprune.models.cascade import Answer, Cascade
from hybridprune.models.routed import Routed, images_at

Partition = Literal["gather", "select", "branch"]
"""How the images that go on reach the next member.

*gather* runs it on these alone, and not at all where there are none. The others are for exporters: *select* is *gather*
without control flow, and *branch* the one of a single image.
"""
Run = Callable[[Tensor, Tensor], Tensor]
"""A member on images ``[B, ...]`` and the answers before it, ``[B, classes]``: the answers with its own in them."""


class DeployedCascade(nn.Module):
    """A cascade for inference: ``[B, 3, H, W]`` images to logits ``[B, classes]``.

    Each batch is partitioned once a gate, and a gate costs one wait for the device at most.
    """

    def __init__(
        self, members: Sequence[nn.Module], gates: Sequence[SingleGate], temperatures: Tensor, answer: Answer
    ) -> None:
        """``members`` are deployed, ``gates`` one less, ``temperatures [K]``; see `Cascade` for ``answer``."""
        super().__init__()
        assert len(members) == len(gates) + 1 == len(temperatures)
        self.members = nn.ModuleList(members)
        self.gates = nn.ModuleList(gates)
        self.register_buffer("temperatures", temperatures)
        self.temperatures: Tensor
        self.answer: Answer = answer
        self.partition: Partition = "gather"
        self.eval()

    @staticmethod
    def of(net: Cascade, members: Sequence[nn.Module]) -> DeployedCascade:
        """The cascade ``net`` with these members in the place of its own."""
        gates = [single_gate(net.gate, k) for k in range(net.num_gates)]
        return DeployedCascade(members, gates, net.temperatures, net.answer)

    def with_members(self, members: Sequence[nn.Module]) -> DeployedCascade:
        """A cascade of the same gates with other members."""
        gates = [gate for gate in self.gates if isinstance(gate, SingleGate)]
        return DeployedCascade(members, gates, self.temperatures, self.answer)

    @property
    def num_gates(self) -> int:
        """N, one less than there are members."""
        return len(self.gates)

    def forward(self, images: Tensor) -> Tensor:
        return self._walk(images, None)[0]

    def route(self, images: Tensor, decisions: Tensor | None = None) -> Routed:
        """Logits, gates' logits ``[B, N]`` and decisions ``[B, N]``; ``decisions`` given overrule the gates.

        Where an image has stopped before, the gate's logit is -inf.
        """
        if decisions is not None:
            assert decisions.shape == (images.shape[0], self.num_gates), decisions.shape
        answer, asked = self._walk(images, decisions)
        scores = answer.new_full((answer.shape[0], self.num_gates), -math.inf)
        taken = torch.zeros_like(scores)
        if asked:
            every = [torch.stack(each, 1) for each in zip(*asked, strict=True)]
            # Gates that are not asked, since all images have stopped, are the last ones.
            scores = torch.cat([every[0], scores[:, len(asked) :]], 1)
            taken = torch.cat([every[1].to(taken.dtype), taken[:, len(asked) :]], 1)
        return Routed(answer, scores, taken)

    def _walk(self, images: Tensor, given: Tensor | None) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Logits, and of each gate that was asked its logits ``[B]`` and who goes on, bool ``[B]``."""
        temperatures = self.temperatures.unbind()
        answer = self.members[0](images).float() / temperatures[0]
        asked: list[tuple[Tensor, Tensor]] = []
        for k, gate in enumerate(self.gates):
            score, _ = gate(answer, None)
            going = score > 0 if given is None else given[:, k] > 0.5
            if asked:
                before = asked[-1][1]
                score, going = torch.where(before, score, -math.inf), going & before
            asked.append((score, going))
            share = 1.0 if self.answer == "last" else 1 / (k + 2)
            run = partial(_with_member, self.members[k + 1], temperatures[k + 1], share)
            after = PARTITIONS[self.partition](run, images, answer, going)
            if after is answer:  # none goes on, and so none will
                break
            answer = after
        return answer, asked


RoutedModule = DeployedNetwork | DeployedCascade
"""Deployed networks that decide for each image, and tell by ``route``."""


def decides(module: nn.Module) -> bool:
    """Whether a deployed network asks gates which of its parts an image runs through; hardened ones need not."""
    if isinstance(module, DeployedNetwork):
        return any(module.step(i).decides for i in range(len(module.steps)))
    return isinstance(module, DeployedCascade)


def _with_member(member: nn.Module, temperature: Tensor, share: float, images: Tensor, answer: Tensor) -> Tensor:
    return torch.lerp(answer, member(images).float() / temperature, share)


def _gather(run: Run, images: Tensor, answer: Tensor, going: Tensor) -> Tensor:
    if len(images) == 1:  # no indices needed
        return run(images, answer) if going else answer
    chosen = going.nonzero().squeeze(1)
    if len(chosen) == 0:
        return answer
    if len(chosen) == len(images):
        return run(images, answer)
    return answer.index_copy(0, chosen, run(images_at(images, chosen), answer.index_select(0, chosen)))


def _select(run: Run, images: Tensor, answer: Tensor, going: Tensor) -> Tensor:
    """`_gather` for any number of images, none included."""
    chosen = going.nonzero().squeeze(1)
    return answer.index_copy(0, chosen, run(images.index_select(0, chosen), answer.index_select(0, chosen)))


def _branch(run: Run, images: Tensor, answer: Tensor, going: Tensor) -> Tensor:
    """`_gather` of a single image; a branch must not give a tensor that it was given."""
    return torch.cond(going.squeeze(0), run, lambda images, answer: answer.clone(), (images, answer))


PARTITIONS: Mapping[Partition, Callable[[Run, Tensor, Tensor, Tensor], Tensor]] = {
    "gather": _gather,
    "select": _select,
    "branch": _branch,
}
"""What there is to do at a gate: (member, images, answers, who goes on) to answers."""
