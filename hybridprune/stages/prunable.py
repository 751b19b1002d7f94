"""A gated network as one that can be pruned."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from hybridprune.config import PruneConfig
from hybridprune.curvature import CROSS_ENTROPY, Likelihood
from hybridprune.data import EvalBatches
from hybridprune.engine.batchnorm import recalibrate
from hybridprune.engine.evaluate import evaluate
from hybridprune.measure.cost import count
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.pruning.budget.space import Cost
from hybridprune.stages.images import RunImages
from hybridprune.store.seeds import stream_seed

CURVATURE_BATCH = 128
"""Of small images; of large ones no more than an evaluation takes."""
JUDGED_AFTER = 1280
"""Training images that BatchNorm sees of a network before it is judged: as many as 20 batches of 64."""
GATES = "gate.*"
"""Their layers are never cut."""


@dataclass(frozen=True)
class PrunableGated:
    """A gated network before one of its cuts: its backbone counts, and its gates say what images see of it."""

    model: GatedNetwork
    images: RunImages
    config: PruneConfig
    channels: Mapping[str, int]
    """Outputs of each layer of the unpruned network, by name."""
    cut: int
    """The number of the cut, from 0: each one has images and sampled targets of its own."""
    measurements: MutableMapping[str, Any] | None = None
    """Those that runs which differ in their budgets alone share."""

    @cached_property
    def example(self) -> Tensor:
        """A black image ``[1, 3, size, size]``."""
        size = self.config.data.resize
        return torch.zeros(1, 3, size, size, device=self.images.device)

    @property
    def exclude(self) -> tuple[str, ...]:
        """The gates, and what the user excludes."""
        return (GATES, *self.config.cut.exclude)

    @property
    def seed(self) -> int:
        """The seed of the run and the cut."""
        return stream_seed(self.config.run.seed, f"labels/{self.cut}")

    @property
    def shared(self) -> bool:
        """Whether processes take the batches in turn, as ``pruner_id`` says."""
        return self.config.stage.pruner_id == 1

    @property
    def likelihood(self) -> Likelihood:
        """The likelihood of classifiers."""
        return CROSS_ENTROPY

    @property
    def cost(self) -> Cost:
        """The cost of the backbone as it is now."""
        return self.measure(self.model)

    def logits(self, images: Tensor) -> Tensor:
        """Class logits ``[B, K]``; blocks that the gates skip do not run."""
        return self.model(images, mode="executed").logits

    def run(self, model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of classes and gates, every block executed."""
        return execute_all(model, images)

    def sample(self, images: int, purpose: str) -> EvalBatches:
        """Random training images, about so many, without augmentation."""
        size = min(CURVATURE_BATCH, self.images.eval_batch)
        return self.images.sample(images, size, f"{purpose}/{self.cut}")

    def judge(self, model: nn.Module) -> float:
        """The accuracy on the validation images, as its gates route them."""
        recalibrate(model, self.sample(JUDGED_AFTER, "judge"))
        return evaluate(model, self.images.validation(), "masked").accuracy

    def measure(self, model: nn.Module) -> Cost:
        """MACs and parameters of the backbone."""
        assert isinstance(model, GatedNetwork)
        cost = count(model, self.config.data.resize)
        return Cost(cost.backbone_macs, cost.backbone_params)

    def counts(self, name: str) -> bool:
        """Whether the layer is one of the backbone."""
        return name.startswith("backbone.")


def execute_all(net: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Every block and every gate, whose inputs are a block's outputs and go with its channels."""
    assert isinstance(net, GatedNetwork)
    routed = net(images, images.new_ones(len(images), net.num_gates))
    return routed.logits, routed.gate_logits
