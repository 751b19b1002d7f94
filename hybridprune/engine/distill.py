"""Learning from the dense network's outputs beside the targets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hybridprune.curvature import CROSS_ENTROPY, Likelihood
from hybridprune.engine.modes import always_on
from hybridprune.models.copies import copied

Forward = Callable[[nn.Module, Any], Any]
"""``forward(network, inputs)``: how a network is run."""


def plainly(net: nn.Module, images: Any) -> Any:
    """``net(images)``"""
    return net(images)


@dataclass(frozen=True)
class Distillation:
    """Knowledge distillation (Hinton et al. 2015, section 2) from a fixed teacher."""

    teacher: nn.Module
    """Images to outputs, in eval mode."""
    weight: float
    """Share of the loss in (0, 1] that is the teacher's; the rest is the labels'."""
    temperature: float
    """Divides both networks' logits, > 0."""
    likelihood: Likelihood = CROSS_ENTROPY
    """What the outputs mean, hence how far two of them are from each other."""
    forward: Forward = plainly

    def __post_init__(self) -> None:
        assert 0 < self.weight <= 1 and self.temperature > 0

    @staticmethod
    def of(
        net: nn.Module,
        weight: float,
        temperature: float,
        likelihood: Likelihood = CROSS_ENTROPY,
        forward: Forward = plainly,
    ) -> Distillation | None:
        """Distillation from ``net`` as it is now (a copy, all of its blocks executed); None for weight 0."""
        if weight == 0:
            return None
        teacher = copied(always_on(net)).eval().requires_grad_(False)
        return Distillation(teacher, weight, temperature, likelihood, forward)

    def __call__(self, images: Any, output: Any, loss: Tensor) -> tuple[Tensor, Tensor]:
        """The student's loss ``(1 - weight) loss + weight d``, and ``d`` itself (both 0-d).

        ``d`` is the likelihood's `divergence` of the student's output from the teacher's: of class logits
        ``temperature^2`` x the mean over images of ``KL(teacher || student)`` in nats.
        """
        with torch.no_grad():
            taught = self.forward(self.teacher, images)
        assert not isinstance(output, Tensor) or taught.shape == output.shape, (taught.shape, output.shape)
        distillation = self.likelihood.divergence(output, taught, self.temperature)
        return (1 - self.weight) * loss + self.weight * distillation, distillation
