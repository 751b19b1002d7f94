"""Learning from the dense network's logits beside the labels."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridprune.engine.modes import always_on


@dataclass(frozen=True)
class Distillation:
    """Knowledge distillation (Hinton et al. 2015, section 2) from a fixed teacher."""

    teacher: nn.Module
    """Images to logits ``[B, classes]``, in eval mode."""
    weight: float
    """Share of the loss in (0, 1] that is the teacher's; the rest is the labels'."""
    temperature: float
    """Divides both networks' logits, > 0."""

    def __post_init__(self) -> None:
        assert 0 < self.weight <= 1 and self.temperature > 0

    @staticmethod
    def of(net: nn.Module, weight: float, temperature: float) -> Distillation | None:
        """Distillation from ``net`` as it is now (a copy, all of its blocks executed); None for weight 0."""
        if weight == 0:
            return None
        return Distillation(copy.deepcopy(always_on(net)).eval().requires_grad_(False), weight, temperature)

    def __call__(self, images: Tensor, logits: Tensor, cross_entropy: Tensor) -> tuple[Tensor, Tensor]:
        """The student's loss ``(1 - weight) cross_entropy + weight d``, and ``d`` itself (both 0-d).

        ``d`` is ``temperature^2`` x the mean over images of ``KL(teacher || student)`` in nats: the square keeps
        the size of its gradient, which the temperature divides twice.
        """
        with torch.no_grad():
            taught = self.teacher(images)
        assert taught.shape == logits.shape, (taught.shape, logits.shape)
        target, student = ((x.float() / self.temperature).log_softmax(1) for x in (taught, logits))
        divergence = F.kl_div(student, target, reduction="batchmean", log_target=True)
        distillation = self.temperature**2 * divergence
        return (1 - self.weight) * cross_entropy + self.weight * distillation, distillation
