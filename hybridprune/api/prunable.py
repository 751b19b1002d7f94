# pyright: strict
"""A module of a user's own as a network that can be pruned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from hybridprune.api.first_look import Batches
from hybridprune.batch import Batch
from hybridprune.curvature import CROSS_ENTROPY, Likelihood
from hybridprune.engine.batchnorm import recalibrate_by
from hybridprune.engine.modes import kept_modes
from hybridprune.measure.cost import count_module
from hybridprune.nested import images_in
from hybridprune.processes import total
from hybridprune.progress_bar import Steps
from hybridprune.pruning.budget.space import Cost
from hybridprune.store.seeds import stream_seed

JUDGED = 1024
"""Images."""


@dataclass(frozen=True)
class PlainNetwork:
    """Any module and a user's batches for it: all of it counts, and all of it is run."""

    model: nn.Module
    batches: Batches
    example: Any
    exclude: tuple[str, ...]
    seed: int

    @property
    def channels(self) -> Mapping[str, int]:
        """An empty mapping: nothing was cut before."""
        return {}

    @property
    def shared(self) -> bool:
        """Whether several processes take the batches in turn: they do."""
        return True

    @property
    def measurements(self) -> None:
        """Measurements are not kept: there is one plan."""
        return None

    @property
    def likelihood(self) -> Likelihood:
        """The task's."""
        return self.batches.task.likelihood

    @property
    def cost(self) -> Cost:
        """The cost of the module as it is now."""
        return self.measure(self.model)

    def logits(self, images: Any) -> Any:
        """The module's output; UserError where it fails on a batch."""
        return self.batches.task.output(self.model, images)

    def run(self, model: nn.Module, images: Any) -> Any:
        """The output of a module of this kind."""
        return self.batches.task.run(model, images)

    def sample(self, images: int, purpose: str) -> Steps[Batch]:
        """Random images of the loader, about so many, with a bar that names the purpose."""
        return Steps(self.batches.sample(images, stream_seed(self.seed, purpose)), purpose)

    @cached_property
    def judged(self) -> list[Batch]:
        """The images that networks are judged on: a user gives no others than those of the training."""
        return list(self.sample(JUDGED, "judging"))

    @torch.no_grad()
    def judge(self, model: nn.Module) -> float:
        """The accuracy or, of other losses than cross-entropy, minus the loss, on random images of the loader."""
        task = self.batches.task
        recalibrate_by(model, self.judged, lambda batch: task.output(model, batch.images), shared=True)
        sums = torch.zeros(2, dtype=torch.float64, device=self.batches.device)
        with kept_modes(model):
            model.eval()
            for batch in self.judged:
                output, images = task.output(model, batch.images), images_in(batch.images) or 0
                if self.likelihood is CROSS_ENTROPY:
                    answers = output.argmax(1)
                    worth = (answers == batch.labels.reshape(answers.shape)).double().mean()
                else:
                    worth = -self.likelihood.loss(output, batch.labels).double()
                sums += torch.stack([worth * images, torch.full_like(worth, images)])
        total([sums])
        return float(sums[0] / sums[1])

    def measure(self, model: nn.Module) -> Cost:
        """All of the module's MACs and parameters."""
        return Cost(*count_module(model, self.example, self.run))

    def counts(self, name: str) -> bool:
        """Every layer does."""
        del name
        return True
