"""However much is asked for, methods that cut by scale leave three channels of a layer."""

from __future__ import annotations

import pytest

from hybridprune.config import CurvatureOptions, CutOptions
from hybridprune.pruning.make_plan import make_plan
from tests.networks_and_images import random_net
from tests.pruning.test_make_plan import network_of


@pytest.mark.parametrize(("method", "least"), [("slimming", 3), ("rni", 3), ("ucs", 3), ("bn-scale", 1)])
def test_the_best_channels_of_a_layer_stay(method: str, least: int) -> None:
    options = CutOptions(method=method, prune_ratio=1.0, prune_ratio_limit=0.999)
    plan = make_plan(network_of(random_net(8, width=8)), options, CurvatureOptions())
    assert set(plan.allocate(1.0, None)) == {least}
