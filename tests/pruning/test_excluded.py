"""A pattern of excluded layers that matches none is refused, with names that are close."""

from __future__ import annotations

import pytest
from torch import nn

from hybridprune.errors import UserError
from hybridprune.models.factored import FactoredConv2d
from hybridprune.pruning.excluded import check_excluded
from tests.networks_and_images import random_net


def test_patterns_that_match_a_layer() -> None:
    check_excluded(random_net(8), ["backbone.blocks.1.*", "backbone.conv", "gate.*", "*"])
    check_excluded(random_net(8), [])
    factored = nn.Sequential(FactoredConv2d(nn.Conv2d(2, 3, 3), 1, None), nn.Linear(2, 2))
    check_excluded(factored, ["0", "1"])


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("backbone.conw", r", did you mean backbone\.conv\?"),
        ("backbone.blocks.1", r", did you mean backbone\.blocks\.1\.\*\?"),
        ("stem", r"; its layers are backbone\.conv, .*, \.\.\."),
        ("backbone.blocks.9.*", ""),
    ],
)
def test_a_pattern_that_matches_none(pattern: str, hint: str) -> None:
    with pytest.raises(UserError) as refused:
        check_excluded(random_net(8), ["backbone.conv", pattern])
    assert refused.match(rf"^--exclude {pattern}: matches no convolution or linear layer of the network{hint}")
