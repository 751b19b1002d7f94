"""The networks of `benchmarks.cascade_arms` by name: published ones, and those that were cut and trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.cascade_choices import Member
from benchmarks.converged import OURS, Bench, Cell
from benchmarks.recipe import Answer, Mode, Recipe, Teacher, answered, save, train
from hybridprune.measure.cost import count_module

OF = 56
"""The published network of whose FLOPs budgets are shares."""
EPOCHS = 10
"""Of the fine-tuning of a cut network, where its name says no other."""


@dataclass(frozen=True)
class Networks:
    """Networks by name, ``DEPTH`` or ``DEPTH@TARGET[xEPOCHS]``, and what the cut ones are trained with."""

    bench: Bench
    seed: int
    recipe: Recipe

    def build(self, name: str) -> nn.Module:
        """A published network, or one that was cut and trained."""
        depth, _, cut = name.partition("@")
        if not cut:
            return self.bench.dense(int(depth))
        target, _, epochs = cut.partition("x")
        cell = Cell(int(depth), float(target))
        return self.bench.trained(cell, OURS, self.seed, self.recipe, int(epochs or EPOCHS))[0]

    def teach(
        self, net: nn.Module, epochs: int, path: Path, answer: Answer = answered, mode: Mode = nn.Module.train
    ) -> None:
        """Train ``net`` in place beside the outputs of the published network; its state is at ``path``."""
        teacher = Teacher(self.bench.dense(OF), self.bench.work / f"teacher-resnet{OF}")
        train(net, teacher, self.bench.images, self.recipe, epochs, self.seed, path, answer, mode)

    def macs(self, net: nn.Module) -> int:
        """MACs of a network for one of the images."""
        return count_module(net, next(iter(self.bench.images.shuffled(0, 1)))[0])[0]

    def member(self, name: str) -> Member:
        """A network's logits for the test images, which are kept in the work folder, and its MACs."""
        path = self.bench.work / f"logits-{name}-seed{self.seed if '@' in name else 0}.pt"
        if not path.is_file():
            net = self.build(name)
            save(path, {"logits": self.bench.images.logits(net), "macs": self.macs(net)})
        found: dict[str, Any] = torch.load(path, weights_only=True)
        return Member(name, found["logits"], found["macs"])
