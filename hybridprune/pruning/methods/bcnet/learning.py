"""The training of a bilaterally coupled network: both sides of drawn widths in each step, and a record of losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hybridprune.data import Batch
from hybridprune.engine.objective import Objective, Pass
from hybridprune.engine.parallel import average
from hybridprune.engine.plain import checkpointing
from hybridprune.pruning.methods.bcnet.bins import LEFT, RIGHT, drawn_widths
from hybridprune.pruning.methods.bcnet.masks import WidthMask, show, show_all


@dataclass(frozen=True)
class Bilateral:
    """The mean of an objective's losses on the left and on the right of the widths of a step."""

    objective: Objective
    masks: Sequence[WidthMask]
    learning: WidthLearning

    def __call__(self, forward: Pass, batch: Batch, passes: float) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean loss (0-d) of both sides, and the means of what is logged; the network is whole afterwards."""
        widths = self.learning.widths
        found = []
        # What is run once more in the backward pass would meet the masks of another side.
        with checkpointing(False):
            for side in (LEFT, RIGHT):
                show(self.masks, side, widths)
                found.append(self.objective(forward, batch, passes))
        show_all(self.masks)
        (left, logged), (right, also) = found
        loss = (left + right) / 2
        self.learning.note(loss.detach() * batch.weight)
        return loss, {name: (value + also[name]) / 2 for name, value in logged.items()}

    def state_dict(self) -> dict[str, Any]:
        """The state of the objective itself."""
        return self.objective.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of ``state_dict``."""
        self.objective.load_state_dict(state)


class WidthLearning:
    """The widths of each step, and the smallest losses that each group has had at each width.

    It adds no gradients: a step of the optimiser is only where a loss is put on record. Nothing waits for the device.
    """

    def __init__(self, masks: Sequence[WidthMask], records: Sequence[Tensor], seed: int) -> None:
        """``records`` share memory with the buffers of the network, ``[bins, smallest]`` of each mask."""
        self._bins = [mask.bins for mask in masks]
        self._records, self._seed, self._step = records, seed, 0
        self._loss: Tensor | None = None

    @property
    def widths(self) -> list[int]:
        """The width of each group in the present step, in bins."""
        return drawn_widths(self._bins, self._seed, self._step)

    def note(self, loss: Tensor) -> None:
        """Take note of this process's share of the loss (0-d) of the present step."""
        self._loss = loss

    @torch.no_grad()
    def add_gradients(self, done: float) -> None:
        """Put the loss of the step on record, averaged over the processes; no gradient changes."""
        del done
        assert self._loss is not None
        loss = self._loss.float().reshape(1).clone()
        average([loss])
        for record, width in zip(self._records, self.widths, strict=True):
            smallest = torch.cat([record[width - 1], loss.to(record.device)])
            record[width - 1] = smallest.sort().values[:-1]
        self._step += 1

    def metrics(self) -> dict[str, float]:
        """The share of all widths of all groups that have a loss on record."""
        seen = torch.cat([record[:, 0].isfinite() for record in self._records])
        return {"widths_seen": float(seen.float().mean())}

    def state_dict(self) -> dict[str, Any]:
        """The step; the record itself is in buffers of the network."""
        return {"step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a ``state_dict``."""
        self._step = state["step"]
