"""What stage 2 measures on."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from hybridprune.config import CutOptions, OptimOptions, PruneConfig, PruneOptions
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


def _cutting(config: PruneConfig) -> Cutting:
    return Cutting(config, cast(Any, Images(1)), {"macs": 1, "params": 1}, Cost(1, 1), {})


def test_each_iteration_has_its_own_ratio_epochs_and_learning_rate() -> None:
    lists = {"iter_ratios": [0.5, 0.25], "iter_epochs": [3, 5], "iter_lrs": [0.1, 0.02]}
    # Two cuts an iteration; what came back after the first one is trained by a multiple of the iteration's rate.
    stage = PruneOptions(max_iter=2, back_ratio=0.1, interpolation=True, **cast(Any, lists))
    cutting = _cutting(PruneConfig(optim=OptimOptions(lr=0.05), cut=CutOptions(prune_ratio=0.9), stage=stage))
    assert [cutting.ratio(cut) for cut in range(4)] == [0.5, 0.5, 0.25, 0.25]
    assert [cutting.epochs(cut, compression=0.5) for cut in range(4)] == [3, 3, 5, 5]
    rates = [0.05 * cutting.lr_factor(cut, compression=0.5) for cut in range(4)]
    assert rates == pytest.approx([0.1 * 5.5, 0.1, 0.02 * 5.5, 0.02])


def test_a_single_entry_is_for_all_iterations_and_none_is_as_ever() -> None:
    one = _cutting(PruneConfig(stage=PruneOptions(max_iter=3, iter_epochs=(7,))))
    assert [one.epochs(cut, compression=0.5) for cut in range(3)] == [7, 7, 7]
    plain = _cutting(PruneConfig(cut=CutOptions(prune_ratio=0.3), stage=PruneOptions(max_iter=2)))
    assert (plain.ratio(1), plain.epochs(1, compression=0.5), plain.lr_factor(1, compression=0.5)) == (0.3, 15, 1.0)


def test_only_the_first_cut_of_an_untrained_network_shares_measurements() -> None:
    kept: dict[str, Any] = {}
    for method, shared in (("fisher-tucker", kept), ("slimming", None)):
        config = PruneConfig(cut=CutOptions(method=method))
        cutting = dataclasses.replace(_cutting(config), measurements=kept)
        assert cutting.network(cast(Any, None), 0).measurements is shared
        assert cutting.network(cast(Any, None), 1).measurements is None
