"""One walk of a batch of images through a gated network: what the environment and the trainers share."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from hybridprune.measure.cost import NetworkCost
from hybridprune.models.gates import Hidden
from hybridprune.models.routed import Mode, RoutedNetwork


class Episode:
    """B images on their way through the blocks, and the MACs that each has really spent.

    It drives the network's own step machine; ``mode`` says how blocks are skipped, which changes the speed and
    nothing else: masked is the faster one where gradients are needed and most blocks run. Without ``backbone_grad``
    only the gates are differentiable.
    """

    def __init__(
        self,
        net: RoutedNetwork,
        cost: NetworkCost,
        images: Tensor,
        *,
        mode: Mode = "executed",
        backbone_grad: bool = True,
        gate_macs: Sequence[int] | None = None,
    ) -> None:
        """Start ``[B, 3, H, W]`` images. ``gate_macs [N]`` is what deciding costs, by default with the own gates."""
        self.net = net
        self._mode: Mode = mode
        self._backbone_grad = backbone_grad
        decide = cost.gate_macs if gate_macs is None else gate_macs
        assert len(decide) == net.num_gates
        self._always = [gate + shortcut for gate, shortcut in zip(decide, cost.shortcut_macs, strict=True)]
        self._blocks, self._head = cost.block_macs, cost.head_macs
        with self._backbone():
            self.state = net.start(images)
        # Whole numbers: MACs of large networks have more digits than fp32.
        self.spent_macs = torch.full((len(images),), cost.start_macs, dtype=torch.int64, device=images.device)
        self._hidden: Hidden | None = None
        self.logits: Tensor | None = None

    @property
    def gate(self) -> int:
        """The gate that decides next; N when all have."""
        return self.state.gate

    @property
    def done(self) -> bool:
        """Whether all gates have decided; ``logits [B, classes]`` are then there."""
        return self.gate == self.net.num_gates

    def gate_logit(self) -> Tensor:
        """The network's own gate's logit ``[B]`` of executing the next block; once for each gate, in their order.

        The features are constants to it: a gate's decision does not train the backbone.
        """
        logit, self._hidden = self.net.ask(self.state, self._hidden, constant=True)
        return logit

    def observe(self) -> Tensor:
        """The last block's output, globally pooled and detached, ``[B, C]``."""
        return self.net.observe(self.state).detach()

    def step(self, actions: Tensor) -> None:
        """Execute (1) or skip (0) the next block for each image ``[B]``; after the last one comes the head."""
        assert not self.done, "the episode is over"
        gate = self.gate
        actions = self.net.allowed(self.state, actions)
        with self._backbone():
            self.state = self.net.advance(self.state, actions, self._mode)
        self.spent_macs = self.spent_macs + self._always[gate] + self._blocks[gate] * actions.detach().long()
        if self.done:
            with self._backbone():
                self.logits = self.net.finish(self.state)
            self.spent_macs = self.spent_macs + self._head

    def _backbone(self) -> AbstractContextManager[object]:
        """What the backbone's own layers run in."""
        return nullcontext() if self._backbone_grad else torch.no_grad()
