"""What stage 2 measures on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from hybridprune.config import PruneConfig
from hybridprune.measure.cost import count
from hybridprune.pruning.budget.space import Cost
from hybridprune.stages.cut_schedule import Cutting
from hybridprune.stages.prunable import CURVATURE_BATCH
from tests.networks_and_images import random_net


@dataclass
class Images:
    """Tells which batches are asked for."""

    eval_batch: int
    asked: list[tuple[int, int]] = field(default_factory=list)
    device: str = "cpu"

    def sample(self, images: int, batch_size: int, purpose: str) -> list[Any]:
        self.asked.append((images, batch_size))
        return []


@pytest.mark.parametrize(("eval_batch", "expected"), [(500, CURVATURE_BATCH), (32, 32), (1, 1)])
def test_its_batches_are_no_larger_than_an_evaluations(eval_batch: int, expected: int) -> None:
    net, images = random_net(8), Images(eval_batch)
    cost = count(net, 32)
    dense = {"macs": cost.backbone_macs, "params": cost.backbone_params}
    cutting = Cutting(PruneConfig(), cast(Any, images), dense, Cost(**dense), {})
    list(cutting.network(net, 0).sample(700, "factors"))
    assert images.asked == [(700, expected)]
