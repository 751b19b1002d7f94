"""Validation of a deployed network: how decisions and classes of validation images changed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hybridprune.data import Batch
from hybridprune.deployment.cascade import RoutedModule
from hybridprune.engine.evaluate import Evaluation, evaluate, evaluate_routes


@dataclass(frozen=True)
class Validated:
    """The trained network beside the deployed one on M images with N gates."""

    images: int
    accuracy_before: float
    accuracy_after: float
    changed_decisions: float
    """Share of the M x N decisions; 0 without gates."""
    changed_classes: float
    """Share of the images that get another class."""
    rates_before: tuple[float, ...]
    rates_after: tuple[float, ...]

    @staticmethod
    def of(before: Evaluation, after: Evaluation) -> Validated:
        """Compare two evaluations of the same images."""
        assert torch.equal(before.labels, after.labels)
        return Validated(
            images=len(before.labels),
            accuracy_before=before.accuracy,
            accuracy_after=after.accuracy,
            changed_decisions=_share(before.decisions != after.decisions),
            changed_classes=_share(before.predictions != after.predictions),
            rates_before=tuple(before.block_rates),
            rates_after=tuple(after.block_rates),
        )

    def __str__(self) -> str:
        decisions, classes = 100 * self.changed_decisions, 100 * self.changed_classes
        return (
            f"{decisions:.2f} % of the decisions and {classes:.2f} % of the classes changed, accuracy "
            f"{self.accuracy_before:.4f} -> {self.accuracy_after:.4f} ({self.images} validation images)"
        )


def _share(differ: Tensor) -> float:
    return float(differ.double().mean()) if differ.numel() else 0.0


def evaluate_module(module: nn.Module, batches: Iterable[Batch], keep_logits: bool = False) -> Evaluation:
    """Evaluate a trained or deployed network, or any module of images, on all batches."""
    if isinstance(module, RoutedModule):
        return evaluate_routes(lambda batch, _: module.route(batch.images), batches, keep_logits)
    return evaluate(module, batches, keep_logits=keep_logits)
