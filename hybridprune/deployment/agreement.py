"""Whether an engine computes with an exported model what the deployed network computes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from hybridprune.deployment.cascade import RoutedModule
from hybridprune.progress_bar import Steps

Run: TypeAlias = Callable[[np.ndarray], Sequence[np.ndarray]]
"""An exported model in its engine: images ``[B, 3, H, W]`` to logits ``[B, classes]`` and, with gates, decisions."""
TOLERANCE = 1e-3
"""How far an engine's logits may be off, relative to the largest of an image."""


@dataclass(frozen=True)
class Agreement:
    """An engine beside the deployed network on the same images."""

    images: int
    difference: float
    """Largest difference of a logit relative to the largest logit of its image, where the decisions are the same."""
    classes: int
    """Images of another class."""
    flips: int
    """Decisions that differ: by rounding, where a gate's logit is next to 0."""

    @property
    def good(self) -> bool:
        """Whether it is the same network."""
        return self.difference <= TOLERANCE and self.classes <= self.flips <= self.images / 100

    def __str__(self) -> str:
        return (
            f"logits differ by {self.difference:.1e} (relative, largest image), {self.classes} images of another class,"
            f" {self.flips} other decisions"
        )


@torch.no_grad()
def compare(run: Run, module: nn.Module, batches: Iterable[Tensor], engine: str = "comparison") -> Agreement:
    """Let an engine, whose name the progress bar shows, and ``module`` see the same images ``[B, 3, H, W]`` on the CPU.

    There, because GPUs may round to TF32, which is as far off as what is looked for.
    """
    module = copy.deepcopy(module).cpu()
    seen, worst, classes, flips = 0, 0.0, 0, 0
    for images in Steps(batches, engine):
        found = [torch.from_numpy(np.asarray(each)) for each in run(images.contiguous().cpu().numpy())]
        same = torch.ones(len(images), dtype=torch.bool)
        if isinstance(module, RoutedModule):
            routed = module.route(images.cpu())
            logits, differ = routed.logits, found[1] != routed.decisions
            same, flips = ~differ.any(1), flips + int(differ.sum())
        else:
            logits = module(images.cpu())
        difference = (found[0] - logits).abs().amax(1) / logits.abs().amax(1)
        worst = max(worst, float(difference[same].max())) if same.any() else worst
        classes += int((found[0].argmax(1) != logits.argmax(1)).sum())
        seen += len(images)
    return Agreement(seen, worst, classes, flips)
