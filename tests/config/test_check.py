"""Options that are given as Python objects are checked as flags are."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hybridprune.config import (
    CurvatureOptions,
    CutOptions,
    OptimOptions,
    PruneConfig,
    RlConfig,
    SparsityOptions,
    SpConfig,
    checked,
    checked_value,
    resolve,
)
from hybridprune.errors import UserError
from hybridprune.pruning.methods import find

STAGES = (SpConfig(), PruneConfig(), RlConfig())


@pytest.mark.parametrize("options", [CutOptions(), CurvatureOptions(), SparsityOptions(), OptimOptions()])
def test_defaults_are_as_they_were(options: Any) -> None:
    assert checked(options, "options", type(options)) == options
    assert checked(None, "options", type(options)) == options


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "magic"}, r'method "magic": must be one of fisher-tucker, '),
        ({"method": None}, "method null: must be a text"),
        ({"target_flops": math.nan}, "target_flops NaN: must be finite"),
        ({"target_flops": 10**400}, "target_flops 1.*0: must be finite"),
        ({"target_flops": "0.5"}, r'target_flops "0.5": must be a number \(without quotes\)'),
        ({"target_params": 0}, "target_params 0: must be above 0"),
        ({"prune_ratio": 1.5}, "prune_ratio 1.5: must be at most 1"),
        ({"rank_multiple": 1.0}, "rank_multiple 1.0: must be a whole number"),
        ({"rank_multiple": True}, "rank_multiple true: must be a whole number"),
        ({"exclude": "conv"}, 'exclude "conv": must be a list'),
        ({"normalize": 1}, "normalize 1: must be true or false"),
        ({"allocation": "rate-distortion"}, 'allocation "rate-distortion": .*, did you mean rate_distortion[?]'),
        ({"refit_images": object}, "refit_images .*object.*: must be a whole number"),
    ],
)
def test_a_mistake_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"^CutOptions\.{message}") as refused:
        CutOptions(**changes)
    assert "\n" not in str(refused.value)


class Large:
    def __repr__(self) -> str:
        return "Large(" + 20 * "weights, " + ")"


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (Large(), '"<Large>"'),
        ([Large()], r'\["<Large>"\]'),
        (nn.Sequential(nn.ReLU(), nn.ReLU()), '"<Sequential>"'),
        (torch.tensor(0.5), r'"tensor\(0.5000\)"'),
        (find("l1"), r'"ChannelMethod\(l1\)"'),
    ],
)
def test_a_large_value_is_told_by_its_kind(value: object, told: str) -> None:
    with pytest.raises(UserError, match=rf"^CutOptions\.allocation {told}: must be a text, one of auto, "):
        CutOptions(allocation=value)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=rf"^cut {told}: must be an instance of CutOptions$"):
        checked(value, "cut", CutOptions)  # type: ignore[arg-type]


def test_numbers_of_other_libraries_are_numbers() -> None:
    given = CutOptions(target_flops=np.float32(0.5), rank_multiple=np.int64(8), exclude=["a"])  # type: ignore[arg-type]
    assert given == CutOptions(target_flops=0.5, rank_multiple=8, exclude=("a",))
    assert type(given.target_flops) is float and type(given.rank_multiple) is int


def test_every_concern_checks_itself() -> None:
    concerns = [type(getattr(stage, f.name)) for stage in STAGES for f in dataclasses.fields(stage)]
    assert len(set(concerns)) == 17
    for concern in concerns:
        for f in dataclasses.fields(concern):
            with pytest.raises(UserError, match=rf"^{concern.__name__}\.{f.name} .*object"):
                concern(**{f.name: object()})


def test_what_has_a_value_on_the_command_line_has_one_always() -> None:
    assert CutOptions().prune_ratio is None and PruneConfig().cut.prune_ratio == 0.5
    with pytest.raises(UserError, match=r'^--prune_ratio "none": must be a number'):
        resolve(PruneConfig(), ["--prune_ratio", "none"], prog="", description="")


def test_anything_else_than_options_is_refused() -> None:
    for wrong in ({"method": "l1"}, CutOptions):
        with pytest.raises(UserError, match=r"^cut .*: must be an instance of CutOptions$"):
            checked(wrong, "cut", CutOptions)  # type: ignore[arg-type]


def test_a_single_value() -> None:
    assert checked_value(OptimOptions, "lr", 1, "lr") == 1.0
    with pytest.raises(UserError, match=r"^lr 0: must be above 0"):
        checked_value(OptimOptions, "lr", 0, "lr")


def test_defaults_of_python_follow_as_those_of_the_command_line() -> None:
    for kind in ("exponential", "stair", "up-down", "cosine"):
        from_flags = resolve(SpConfig(), ["--scheduler_id", kind], prog="", description="").config.optim
        assert OptimOptions(scheduler_id=kind) == from_flags
        assert dataclasses.replace(OptimOptions(scheduler_id="cosine"), scheduler_id=kind) == from_flags
    stair = OptimOptions().scheduler_params
    given_points = ["--scheduler_id", "cosine", "--scheduler_params", json.dumps(stair)]
    own = OptimOptions(scheduler_id="cosine", scheduler_params=dict(stair))
    assert own.scheduler_params == stair and dataclasses.replace(own, lr=1.0).scheduler_params == stair
    assert own == resolve(SpConfig(), given_points, prog="", description="").config.optim
