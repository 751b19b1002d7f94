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
"""How the images that go on, or their features, reach the next member.

*gather* runs it on these alone, and not at all where there are none. The others are for exporters: *select* is *gather*
without control flow, and *branch* the one of a single image.
"""
Run = Callable[[Tensor, Tensor], tuple[Tensor, ...]]
"""A member on its inputs ``[B, ...]`` and the answers before it, ``[B, classes]``: the answers with its own in them.

Behind them stand the features ``[B, ...]`` that the next member goes on from, if it does.
"""


class Forked(nn.Module):
    """A member whose first part another one goes on from.

    ``trunk`` gives features of the member's inputs, and ``rest`` logits of the features; ``forward`` gives both, the
    logits first. The trunk runs once.
    """

    def __init__(self, trunk: nn.Module, rest: nn.Module) -> None:
        super().__init__()
        self.trunk, self.rest = trunk, rest

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.trunk(x)
        return self.rest(features), features


class DeployedCascade(nn.Module):
    """A cascade for inference: ``[B, 3, H, W]`` images to logits ``[B, classes]``.

    Each batch is partitioned once a gate, and a gate costs one wait for the device at most.
    """

    def __init__(
        self, members: Sequence[nn.Module], gates: Sequence[SingleGate], temperatures: Tensor, answer: Answer
    ) -> None:
        """``members`` are deployed, ``gates`` one less, ``temperatures [K]``; see `Cascade` for ``answer``.

        Behind a `Forked` member comes one that takes its features, behind any other one that takes the images.
        """
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

    @property
    def branches(self) -> bool:
        """Whether *branch* can run it: a branch that is not taken would not know which features to give."""
        return not any(isinstance(member, Forked) for member in self.members[1:])

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
        logits, *features = outputs(self.members[0], images)
        answer = logits.float() / temperatures[0]
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
            inputs = features[0] if features else images
            after, *features = PARTITIONS[self.partition](run, inputs, answer, going)
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


def outputs(member: nn.Module, inputs: Tensor) -> tuple[Tensor, ...]:
    """A member's logits, and the features that the next one goes on from, if it does."""
    found = member(inputs)
    return found if isinstance(found, tuple) else (found,)


def _with_member(
    member: nn.Module, temperature: Tensor, share: float, inputs: Tensor, answer: Tensor
) -> tuple[Tensor, ...]:
    logits, *features = outputs(member, inputs)
    return torch.lerp(answer, logits.float() / temperature, share), *features


def _gather(run: Run, inputs: Tensor, answer: Tensor, going: Tensor) -> tuple[Tensor, ...]:
    if len(inputs) == 1:  # no indices needed
        return run(inputs, answer) if going else (answer,)
    chosen = going.nonzero().squeeze(1)
    if len(chosen) == 0:
        return (answer,)
    if len(chosen) == len(inputs):
        return run(inputs, answer)
    return _put_back(answer, chosen, run(images_at(inputs, chosen), answer.index_select(0, chosen)))


def _select(run: Run, inputs: Tensor, answer: Tensor, going: Tensor) -> tuple[Tensor, ...]:
    """`_gather` for any number of images, none included."""
    chosen = going.nonzero().squeeze(1)
    return _put_back(answer, chosen, run(inputs.index_select(0, chosen), answer.index_select(0, chosen)))


def _put_back(answer: Tensor, chosen: Tensor, found: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What a member gave for the ``chosen`` images, in their rows; others keep their answer, and have features of 0."""
    after, *features = found
    blank = (each.new_zeros(answer.shape[0], *each.shape[1:]) for each in features)
    return answer.index_copy(0, chosen, after), *(
        rows.index_copy(0, chosen, each) for rows, each in zip(blank, features, strict=True)
    )


def _branch(run: Run, inputs: Tensor, answer: Tensor, going: Tensor) -> tuple[Tensor, ...]:
    """`_gather` of a single image; a branch must not give a tensor that it was given."""
    return torch.cond(going.squeeze(0), run, lambda inputs, answer: (answer.clone(),), (inputs, answer))


PARTITIONS: Mapping[Partition, Callable[[Run, Tensor, Tensor, Tensor], tuple[Tensor, ...]]] = {
    "gather": _gather,
    "select": _select,
    "branch": _branch,
}
"""What there is to do at a gate: (member, its inputs, answers, who goes on) to what a `Run` gives, of all images."""
