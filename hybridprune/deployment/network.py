"""The deployed form of a gated network: a stem, a list of steps, a head."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from hybridprune.deployment.gates import SingleGate, single_gate
from hybridprune.models.backbone import ResidualBlock
from hybridprune.models.gates import Hidden
from hybridprune.models.routed import Routed
from hybridprune.models.skipnet import GatedNetwork, execute_chosen

Action = Literal["run", "skip", "gather", "blend", "select", "branch"]
"""What a step does with its block.

*run*: execute it for every image. *skip*: for none. The others ask the step's gate: *gather* computes it on the images
that chose it, *blend* on all of them; *select* is *gather* without control flow and *branch* the one of a single image,
both for exporters.
"""


@dataclass(frozen=True)
class StepRecord:
    """A record of how one block is run."""

    action: Action
    gate: Literal["decides", "listens", "none"]
    """listens: decides nothing, but its state is read by later gates."""


class Step(nn.Module):
    """A block, what is done with it, and the gate that is asked before it, if there is one.

    With *run* and *skip* a gate decides nothing and only hands its state on.
    """

    def __init__(self, block: nn.Module, action: Action, gate: SingleGate | None) -> None:
        super().__init__()
        self.block = block
        self.action: Action = action
        self.gate = gate

    @property
    def decides(self) -> bool:
        """Whether images differ in what happens here."""
        return self.action in ACTIONS

    def forward(self, x: Tensor, decision: Tensor | None) -> Tensor:
        """The next features, given the decisions, bool ``[B]``, if there is something to decide."""
        block = cast(ResidualBlock, self.block)
        if decision is not None:
            return ACTIONS[self.action](block, x, decision)
        return block(x) if self.action == "run" else block.skip(x)


class DeployedNetwork(nn.Module):
    """A gated network for inference: ``[B, 3, H, W]`` images to logits ``[B, classes]``.

    Step 0 is the backbone's block 0, and step i + 1 is the block that gate i decided.
    """

    def __init__(self, net: GatedNetwork) -> None:
        """The parts of ``net``, which is used up: every gated block is gathered."""
        super().__init__()
        assert net.num_blocks > 0
        self.steps = nn.ModuleList(
            Step(
                cast(nn.Module, net.block(i)),
                "run" if i == 0 else "gather",
                None if i == 0 else single_gate(net.gate, i - 1),
            )
            for i in range(net.num_blocks)
        )
        # Any: beyond the protocol, backbones have layers of their own.
        self.backbone: Any = net.backbone
        self.backbone.blocks = nn.ModuleList()
        self.piece: int | None = None
        """Images that are run at a time, at most; None: as many as come."""
        self.eval()

    @property
    def num_gates(self) -> int:
        """N: gates of the network that this one comes from, removed ones included."""
        return len(self.steps) - 1

    def step(self, index: int) -> Step:
        """Step ``index``."""
        step = self.steps[index]
        assert isinstance(step, Step)
        return step

    def records(self) -> tuple[StepRecord, ...]:
        """Records of how each block is run."""
        steps = [self.step(i) for i in range(len(self.steps))]
        return tuple(
            StepRecord(step.action, "none" if step.gate is None else "decides" if step.decides else "listens")
            for step in steps
        )

    def forward(self, images: Tensor) -> Tensor:
        if self.piece is None or len(images) <= self.piece:
            return self._walk(images, None)[0]
        return torch.cat([self._walk(each, None)[0] for each in images.split(self.piece)])

    def route(self, images: Tensor, decisions: Tensor | None = None) -> Routed:
        """Logits, gates' logits ``[B, N]`` and decisions ``[B, N]``; ``decisions`` given overrule the gates.

        Where a gate was removed the decision is what became of its block, and its logit is infinite.
        """
        if decisions is not None:
            assert decisions.shape == (images.shape[0], self.num_gates), decisions.shape
        if self.piece is None or len(images) <= self.piece:
            return self._route(images, decisions)
        pieces = images.split(self.piece)
        given = [None] * len(pieces) if decisions is None else decisions.split(self.piece)
        routes = [self._route(*each) for each in zip(pieces, given, strict=True)]
        return Routed(*(torch.cat(each) for each in zip(*routes, strict=True)))

    def _route(self, images: Tensor, decisions: Tensor | None) -> Routed:
        logits, asked = self._walk(images, decisions)
        if not asked:
            none = logits.new_empty(logits.shape[0], 0)
            return Routed(logits, none, none)
        every, scores, taken = logits.shape[:1], [], []
        for (score, decision), step in zip(asked, list(self.steps)[1:], strict=True):
            runs = isinstance(step, Step) and step.action == "run"
            scores.append(logits.new_full(every, math.inf if runs else -math.inf) if decision is None else score)
            taken.append(logits.new_full(every, runs, dtype=torch.bool) if decision is None else decision)
        return Routed(logits, torch.stack(scores, 1), torch.stack(taken, 1).to(logits.dtype))

    def _walk(self, images: Tensor, given: Tensor | None) -> tuple[Tensor, list[tuple[Tensor, Tensor | None]]]:
        """Logits, and for each gate its logits ``[B]`` and, where it decides, its decisions, bool ``[B]``."""
        x = self.backbone.stem(images)
        hidden: Hidden | None = None
        asked: list[tuple[Tensor, Tensor | None]] = []
        overruled = None if given is None else (given > 0.5).unbind(1)
        for i, step in enumerate(self.steps):
            assert isinstance(step, Step)
            score, decision = x, None
            if step.gate is not None:
                score, hidden = step.gate(x, hidden)
                if step.decides:
                    decision = score > 0 if overruled is None else overruled[i - 1]
            if i > 0:
                asked.append((score, decision))
            x = step(x, decision)
        return self.backbone.head(x), asked


def _gather(block: ResidualBlock, x: Tensor, decision: Tensor) -> Tensor:
    return execute_chosen(block, x, decision)


def _blend(block: ResidualBlock, x: Tensor, decision: Tensor) -> Tensor:
    skipped = block.skip(x)
    return torch.where(decision.view(-1, 1, 1, 1), block.execute(x, skipped), skipped)


def _select(block: ResidualBlock, x: Tensor, decision: Tensor) -> Tensor:
    """`_gather` for any number of images, none included."""
    skipped = block.skip(x)
    chosen = decision.nonzero().squeeze(1)
    executed = block.execute(x.index_select(0, chosen), skipped.index_select(0, chosen))
    return skipped.index_copy(0, chosen, executed)


def _branch(block: ResidualBlock, x: Tensor, decision: Tensor) -> Tensor:
    """`_gather` of a single image; a branch must not give a tensor that it was given."""
    skipped = block.skip(x)
    return torch.cond(
        decision.squeeze(0),
        lambda x, skipped: block.execute(x, skipped),
        lambda x, skipped: skipped.clone(),
        (x, skipped),
    )


ACTIONS: Mapping[str, Callable[[ResidualBlock, Tensor, Tensor], Tensor]] = {
    "gather": _gather,
    "blend": _blend,
    "select": _select,
    "branch": _branch,
}
"""What there is to do with a block when images differ: (block, features, decisions) to features."""
