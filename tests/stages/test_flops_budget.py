"""What stage 3 makes of a budget."""

from __future__ import annotations

import pytest

from hybridprune.config import RoutingOptions
from hybridprune.errors import UserError
from hybridprune.measure.cost import count
from hybridprune.stages.flops_budget import budget_of
from tests.networks_and_images import random_net


def test_a_budget_that_skipping_cannot_reach() -> None:
    cost = count(random_net(8), 8)
    dense = cost.backbone_macs
    with pytest.raises(UserError, match=r"^--target_flops 0\.01: skipping blocks reaches "):
        budget_of(RoutingOptions(target_flops=0.01), cost, dense)
    with pytest.raises(
        UserError, match=r"^--target_flops 50\.0: 50 is taken as 50 FLOPs, for 50 % give --target_flops"
    ):
        budget_of(RoutingOptions(target_flops=50), cost, dense)
    assert budget_of(RoutingOptions(target_flops=0.9), cost, dense) == pytest.approx(0.9 * dense)
    assert budget_of(RoutingOptions(), cost, dense) is None
