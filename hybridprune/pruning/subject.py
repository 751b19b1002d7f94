"""The network that is to be cut, seen as any ``nn.Module``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from hybridprune.curvature.likelihood import CROSS_ENTROPY, Likelihood
from hybridprune.curvature.shard import ALONE, Shard
from hybridprune.pruning.budget.space import Cost

Run = Callable[[nn.Module, Any], object]
"""``run(model, images)`` passes a batch through a network of this kind, all of its blocks executed."""

Pairs = Iterable[tuple[Any, Any]]
"""Batches of images, or what else the network takes, and targets."""


@dataclass(frozen=True)
class Subject:
    """A network, how it is run, and images to run it on."""

    model: nn.Module
    logits: Callable[[Any], Any]
    """Images to outputs as in use: a gated network routes them by its gates."""
    run: Run
    example: Any
    """One image ``[1, ...]``, or what else ``run`` takes of one."""
    exclude: tuple[str, ...]
    """Patterns of names of layers that are left alone."""
    sample: Callable[[int, str], Pairs]
    """``sample(images, purpose)`` gives batches of about that many random training images."""
    measure: Callable[[nn.Module], Cost]
    """The cost of a network of this kind, as far as it counts: a gated network's is its backbone's, without gates."""
    counts: Callable[[str], bool]
    """Whether a layer of this name is a part of that."""
    channels: Mapping[str, int]
    """Outputs that each layer had before anything was cut, by name; a layer that is not in it has all of them."""
    seed: int
    shard: Shard = ALONE
    """Which of the batches this process measures, where several measure together."""
    likelihood: Likelihood = CROSS_ENTROPY
    """Of the outputs: their loss, and how targets are sampled."""

    @property
    def cost(self) -> Cost:
        """Of the network as it is now."""
        return self.measure(self.model)
