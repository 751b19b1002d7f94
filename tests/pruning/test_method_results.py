"""Mistakes in a method of one's own are told in one line: the method, the layer, and what was wanted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hybridprune
from examples.my_method import plain_svd
from hybridprune.config import CurvatureOptions
from hybridprune.errors import UserError
from hybridprune.methods import ChannelMethod, DirectionMethod
from hybridprune.pruning.method_results import checked_decomposition, checked_scores


def prune(method: Any) -> hybridprune.Pruned:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(16, 3)).eval()
    batches = [(torch.randn(4, 3, 6, 6), torch.arange(4) % 3)]
    curvature = CurvatureOptions(curvature_images=4, moment_images=4)
    return hybridprune.prune(net, batches, method=method, target_flops=0.7, curvature=curvature, progress=False)


def scored(scores: Callable[[int], object]) -> ChannelMethod:
    def wrong(group: Any, statistics: Any) -> Any:
        return scores(group.channels)

    return ChannelMethod(wrong)


def decomposed(**parts: Callable[[Tensor], object]) -> DirectionMethod:
    def wrong(*given: Any) -> Any:
        right: Any = plain_svd(*given)
        return replace(right, **{name: make(getattr(right, name)) for name, make in parts.items()})

    return DirectionMethod(wrong, allocation="rate_distortion", moments=lambda corrected: None)


BAD: dict[str, tuple[Any, str]] = {
    "too few scores": (
        scored(lambda n: torch.zeros(3)),
        r"a tensor \[3\] as scores for 6 channels of 0; give a tensor",
    ),
    "a list of scores": (scored(lambda n: [0.0] * n), r"a list as scores for 6 channels of 0; give a tensor \[6\]"),
    "scores that are NaN": (
        scored(lambda n: torch.full((n,), torch.nan)),
        "a score for the 6 channels of 0 is not finite; look",
    ),
    "no decomposition": (
        DirectionMethod(lambda *given: 3, allocation="importance", moments=lambda corrected: None),  # type: ignore[arg-type,return-value]
        "a int for 0; return a Decomposition",
    ),
    "another shape": (decomposed(core=lambda core: core[:2]), r"a tensor \[2, 3, 3, 3\] as core of 0; give a tensor"),
    "importance that is NaN": (decomposed(importance=lambda x: x * torch.nan), "importance of 0 is not finite; look"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_mistake_in_a_method_is_told(name: str) -> None:
    method, told = BAD[name]
    with pytest.raises(UserError, match=rf"^method \w+Method\(.*\): {told}") as refused:
        prune(method)
    assert "\n" not in str(refused.value)


def test_what_is_right_is_passed_through() -> None:
    scores = torch.rand(4)
    assert checked_scores(scores, "mine", "a", 4) is scores
    weight = torch.rand(4, 3, 2, 2)
    found = plain_svd(weight, None, None, 0.0)  # type: ignore[arg-type]
    assert checked_decomposition(found, "mine", "a", weight) is found
