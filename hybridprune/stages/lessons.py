"""The lessons of a cut network that imitates its parent: features stage by stage, then logits (Zhou et al. 2020)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from hybridprune.config import PruneConfig
from hybridprune.engine.distill import Distillation, plainly
from hybridprune.engine.fit import Fit
from hybridprune.engine.imitation import Imitation, Stages, add_pairs, stage_ends
from hybridprune.engine.objective import Supervised
from hybridprune.engine.progress import Validation
from hybridprune.models.backbone import Backbone
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.precision import Precision
from hybridprune.stages.setup import StageSetup

PAIR_IMAGES = 1024
"""Training images by which pairs of linear maps are fitted at first."""
RESTART = 1e-9
"""Share of a training between the end of a cosine and the start of the next one."""


@dataclass(frozen=True)
class Lessons:
    """The two lessons, made of the fine-tuning that they come before."""

    setup: StageSetup[PruneConfig]
    teacher: Backbone

    def of(self, fit: Fit[GatedNetwork], lesson: Literal["features", "logits"], resumed: bool) -> Fit[GatedNetwork]:
        """The training of a lesson, which keeps its last weights; for features the network gets its pairs, in place.

        ``resumed``: the network's weights are still to be loaded.
        """
        stage = self.setup.config.stage
        if lesson == "logits":
            assert isinstance(fit.objective, Supervised)
            taught = Distillation(self.teacher, 1.0, 1.0, forward=self._precision(plainly))
            objective = dataclasses.replace(fit.objective, distillation=taught)
            return self._trained(fit, 1, objective=objective)
        ends = stage_ends(self.teacher, black(self.setup))
        student, teacher = Stages(fit.net.backbone, ends), Stages(self.teacher, ends)
        images = self.setup.images
        sample = images.sample(PAIR_IMAGES, images.eval_batch, "imitation")
        add_pairs(student, teacher, sample, fitted=not resumed)
        imitation = Imitation(student, teacher, stage.imitate_epochs, self._precision)

        def validate(candidate: GatedNetwork) -> Validation:
            del candidate  # it is the one that imitates: its weights are not averaged
            errors = imitation.validate(images.validation())
            return Validation(-sum(errors.values()), errors)

        return self._trained(fit, len(ends), objective=imitation, validate=validate, compile="off")

    def _trained(self, fit: Fit[GatedNetwork], cosines: int, **changes: Any) -> Fit[GatedNetwork]:
        config = self.setup.config
        optim = dataclasses.replace(
            config.optim,
            lr=config.stage.imitate_lr,
            weight_decay=0.0,
            scheduler_id="cosine",
            scheduler_params=restarted(cosines),
        )
        epochs = cosines * config.stage.imitate_epochs
        common: dict[str, Any] = {"lr_factor": 1.0, "ema_decay": 0.0, "keep_last": True}
        return dataclasses.replace(fit, optim=optim, epochs=epochs, **common, **changes)

    @property
    def _precision(self) -> Precision:
        return Precision.of(self.setup.config.optim.precision, self.setup.device)


def restarted(cosines: int) -> dict[str, float]:
    """The points of a schedule of so many equal cosines from 1 to 0, one after another."""
    points = {str(number / cosines): 1.0 for number in range(cosines)}
    return points | {str((number + 1) / cosines - RESTART): 0.0 for number in range(cosines)}


def black(setup: StageSetup[PruneConfig]) -> Tensor:
    """A black image ``[1, 3, size, size]``."""
    size = setup.spec.input_size
    return torch.zeros(1, 3, size, size, device=setup.device)
