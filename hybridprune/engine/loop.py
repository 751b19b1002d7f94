"""The one training loop: of the stages, which keep it in a run folder, and of the API, which keeps it in memory."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from hybridprune.data import Batch
from hybridprune.engine.batchnorm import average_statistics
from hybridprune.engine.compile_trial import Trial
from hybridprune.engine.descent import Descent
from hybridprune.engine.modes import norms_at_rest, without_trace
from hybridprune.engine.objective import Objective, Pass
from hybridprune.engine.step_means import StepMeans
from hybridprune.errors import RunFailed
from hybridprune.nested import images_in
from hybridprune.processes import count


@dataclass
class Loop:
    """The steps of a training of the network of ``descent``, resumable between any two of them.

    What happens between two steps, such as saving or validating, is up to who asks for the next one.
    """

    objective: Objective
    descent: Descent
    per_pass: int
    """Steps of one pass over the training images."""
    remedy: str
    """What to do about a loss that is not finite."""
    joined: bool = False
    """Whether the processes share each batch, so that its means and running statistics are those of all of them."""
    lone_at_rest: bool = False
    """Whether BatchNorms are at rest in a batch of one image, which may have no statistics of its own."""
    means: StepMeans = field(default_factory=StepMeans)
    """Of the loss and of what the objective logs, since they were last set back."""
    done: int = 0
    """Steps so far."""
    trial: Trial | None = None
    """Decides, step by step, what runs compiled."""

    def __post_init__(self) -> None:
        drive = self.descent.drive
        if drive is not None and drive.around is not None:
            self.objective = drive.around(self.objective)

    def __call__(self, forward: Pass, batches: Iterable[Batch], start: int = 0) -> Iterator[int]:
        """A step for each of the ``batches``, the first of which is step ``start``; gives how many are done.

        ``forward`` runs the network on what the objective hands to it.
        """
        self.done = start
        if self.trial is not None:
            batches = self.trial.timed(batches, partial(self._rehearse, forward))
        for batch in batches:
            with self._norms(batch):
                loss, metrics = self._loss(forward, batch)
                # Until the gradient is there: checkpointing runs parts of the network once more.
                self.descent.step(loss, batch.weight, self.done)
                self.descent.follow(lambda batch=batch: self._loss(forward, batch)[0], batch.weight, self.done)
            self.means.add({"loss": loss.detach(), **metrics}, batch.weight)
            self.done += 1
            if self.trial is not None:
                self.trial.stepped()
            yield self.done

    def _loss(self, forward: Pass, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        passes, place = divmod(self.done, self.per_pass)
        return self.objective(forward, batch, passes + place / self.per_pass)

    def _norms(self, batch: Batch) -> AbstractContextManager[None]:
        rests = self.lone_at_rest and images_in(batch.images) == 1
        return norms_at_rest(self.descent.net) if rests else nullcontext()

    def _rehearse(self, forward: Pass, batch: Batch) -> None:
        """The passes of the next step, forward and backward, and nothing of what they change."""
        state = copy.deepcopy(self.objective.state_dict())
        try:
            with self._norms(batch), without_trace(self.descent.net, self.descent.device):
                self._loss(forward, batch)[0].backward()
        finally:  # the next step begins without gradients
            self.objective.load_state_dict(state)

    def read(self) -> dict[str, float]:
        """The means so far, by name; it waits for the device. RunFailed if the loss is not finite."""
        if self.joined and count() > 1:  # again and again does no harm
            self.means.join()
            average_statistics(self.descent.net)
        if not math.isfinite(float(self.means.sums["loss"])):
            passes, place = divmod(self.done - 1, self.per_pass)
            raise RunFailed(f"the loss is not finite at epoch {passes + 1}, step {place + 1}; {self.remedy}")
        return self.means.read()

    def state_dict(self) -> dict[str, Any]:
        """The state that a resumed training needs beside the weights."""
        return {**self.descent.state_dict(), "objective": self.objective.state_dict(), "sums": self.means.sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a ``state_dict``."""
        self.descent.load_state_dict(state)
        self.objective.load_state_dict(state["objective"])
        self.means = StepMeans({name: value.to(self.descent.device) for name, value in state["sums"].items()})
