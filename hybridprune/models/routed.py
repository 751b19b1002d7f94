"""Networks that decide for each image what of them is run.

The routing is one step machine, ``start -> (ask -> advance) x N -> finish``. ``forward`` runs it from end to end;
rollouts and the environment drive the same steps, so there is one implementation of each kind of routing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from hybridprune.models.gates import Decide, Hidden, greedy, straight_through

Mode = Literal["masked", "executed"]


class Routed(NamedTuple):
    """The answer of a routed network for B images and N gates."""

    logits: Tensor
    """``[B, classes]``"""
    gate_logits: Tensor
    """``[B, N]``; gate ``i`` decides whether part ``i + 1`` runs: a block, or a member of a cascade"""
    decisions: Tensor
    """``[B, N]`` in {0, 1}"""

    @property
    def mean_rate(self) -> Tensor:
        """Mean execution rate (0-d); 1 where there is no gate: all is executed."""
        return self.decisions.float().mean() if self.decisions.numel() else torch.ones((), device=self.logits.device)


class State(Protocol):
    """A batch of images between two decisions."""

    @property
    def features(self) -> Tensor:
        """Features that the next gate looks at, ``[B, ...]``."""
        ...

    @property
    def gate(self) -> int:
        """The gate that decides next; N when all have."""
        ...


class RoutedNetwork(nn.Module, ABC):
    """A network with N gates, each of which decides whether the next part of it runs; part 0 always does.

    *masked* computes every part for every image and blends by the decision (training); *executed* runs a part on the
    images that chose it only (inference). Both give the same logits for the same decisions.
    """

    body: ClassVar[str]
    """Name of the module that holds all but the gates."""
    gate: Any
    """A `Gate`; kinds of gates have layers of their own."""

    @property
    @abstractmethod
    def num_gates(self) -> int:
        """N"""

    @property
    @abstractmethod
    def observation_size(self) -> int:
        """D, the most numbers that `observe` gives."""

    @abstractmethod
    def start(self, images: Tensor) -> State:
        """Run what always runs first on ``[B, 3, H, W]`` images."""

    @abstractmethod
    def observe(self, state: Any) -> Tensor:
        """An agent's view of the state, ``[B, D]`` or narrower."""

    @abstractmethod
    def advance(self, state: Any, decision: Tensor, mode: Mode) -> State:
        """Apply the decisions ``[B]`` in {0, 1}, each `allowed`, to the next part."""

    @abstractmethod
    def finish(self, state: Any) -> Tensor:
        """Logits ``[B, classes]`` when all gates have decided."""

    def ask(self, state: Any, hidden: Hidden | None, constant: bool = False) -> tuple[Tensor, Hidden | None]:
        """The next gate's logits ``[B]`` of running the next part, and its memory, from the memory of the one before.

        ``constant`` features are constants to it: its decision does not train what it looks at.
        """
        return self.gate(state.gate, state.features.detach() if constant else state.features, hidden)

    def allowed(self, state: Any, decision: Tensor) -> Tensor:
        """The decisions ``[B]`` that can be made where these are wanted."""
        return decision

    def forward(
        self,
        images: Tensor,
        decisions: Tensor | None = None,
        mode: Mode = "masked",
        decide: Decide | None = None,
        noise: Tensor | None = None,
    ) -> Routed:
        """Route ``[B, 3, H, W]`` images; ``decisions [B, N]`` in {0, 1} overrule the gates.

        ``decide`` turns a gate's logits, ``noise [B, N]`` added, into decisions; by default they are straight-through
        in training mode and carry no gradient in eval mode.
        """
        return self.route(self.start(images), decisions, mode, decide, noise)

    def route(
        self,
        state: State,
        decisions: Tensor | None = None,
        mode: Mode = "masked",
        decide: Decide | None = None,
        noise: Tensor | None = None,
    ) -> Routed:
        """Ask all gates, from what `start` gave to the answer; arguments as of ``forward``."""
        if decide is None:
            decide = straight_through if self.training else greedy
        for given in (decisions, noise):
            assert given is None or given.shape == (len(state.features), self.num_gates), given.shape
        hidden: Hidden | None = None
        gate_logits: list[Tensor] = []
        forced = None if decisions is None else decisions.unbind(1)
        taken: list[Tensor] = []
        for i in range(self.num_gates):
            logit, hidden = self.ask(state, hidden)
            disturbed = logit if noise is None else logit + noise[:, i]
            decision = self.allowed(state, decide(disturbed) if forced is None else forced[i])
            state = self.advance(state, decision, mode)
            gate_logits.append(logit)
            taken.append(decision)
        logits = self.finish(state)
        if not taken:
            none = torch.empty(len(logits), 0, device=logits.device)
            return Routed(logits, none, none)
        return Routed(logits, torch.stack(gate_logits, 1), torch.stack(taken, 1))


def images_at(x: Tensor, ids: Tensor) -> Tensor:
    """``x[ids]`` of ``[B, C, H, W]`` in the memory format of ``x``, which ``index_select`` alone would not keep."""
    if x.is_contiguous(memory_format=torch.channels_last):
        return x.permute(0, 2, 3, 1).index_select(0, ids).permute(0, 3, 1, 2)
    return x.index_select(0, ids)
