"""The progress of a training, and how good its network is."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass
class Progress:
    """The progress of a run: ``phase`` counts a stage's trainings, ``step`` the batches of the current epoch."""

    phase: int = 0
    epoch: int = 0
    step: int = 0
    best_score: float = -math.inf
    best_epoch: int = -1
    best_averaged: bool = False
    """Whether the best weights are the averaged ones of that epoch."""
    seconds: float = 0.0

    def next_phase(self) -> Progress:
        """The start of the next training of the same run."""
        return Progress(phase=self.phase + 1, seconds=self.seconds)


@dataclass(frozen=True)
class Validation:
    """A network's score on the validation split (higher is better; it selects) and what is worth logging."""

    score: float
    metrics: dict[str, float]
