"""Options that are given as Python objects are checked as flags are."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from hybridprune.config import CurvatureOptions, CutOptions, OptimOptions, SparsityOptions, checked, checked_value
from hybridprune.errors import UserError


@pytest.mark.parametrize("options", [CutOptions(), CurvatureOptions(), SparsityOptions(), OptimOptions()])
def test_defaults_are_as_they_were(options: Any) -> None:
    assert checked(options, "options", type(options)) == options
    assert checked(None, "options", type(options)) == options


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "magic"}, r'method "magic": must be one of fisher-tucker, '),
        ({"method": None}, "method null: must be a text"),
        ({"target_flops": math.nan}, "cut.target_flops NaN: must be finite"),
        ({"target_flops": 10**400}, "cut.target_flops 1.*0: must be finite"),
        ({"target_flops": "0.5"}, r'cut.target_flops "0.5": must be a number \(without quotes\)'),
        ({"target_params": 0}, "cut.target_params 0: must be above 0"),
        ({"prune_ratio": 1.5}, "cut.prune_ratio 1.5: must be at most 1"),
        ({"rank_multiple": 1.0}, "cut.rank_multiple 1.0: must be a whole number"),
        ({"rank_multiple": True}, "cut.rank_multiple true: must be a whole number"),
        ({"exclude": "conv"}, 'cut.exclude "conv": must be a list'),
        ({"normalize": 1}, "cut.normalize 1: must be true or false"),
        ({"refit_images": object}, "cut.refit_images .*object.*: must be a whole number"),
    ],
)
def test_a_mistake_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}") as refused:
        checked(dataclasses.replace(CutOptions(), **changes), "cut", CutOptions, own=("method",))
    assert "\n" not in str(refused.value)


def test_numbers_of_other_libraries_are_numbers() -> None:
    given = CutOptions(target_flops=np.float32(0.5), rank_multiple=np.int64(8), exclude=["a"])  # type: ignore[arg-type]
    found = checked(given, "cut", CutOptions)
    assert found == CutOptions(target_flops=0.5, rank_multiple=8, exclude=("a",))
    assert type(found.target_flops) is float and type(found.rank_multiple) is int


def test_anything_else_than_options_is_refused() -> None:
    for wrong in ({"method": "l1"}, CutOptions):
        with pytest.raises(UserError, match=r"^cut .*: must be an instance of CutOptions$"):
            checked(wrong, "cut", CutOptions)  # type: ignore[arg-type]


def test_a_single_value() -> None:
    assert checked_value(OptimOptions, "lr", 1, "lr") == 1.0
    with pytest.raises(UserError, match=r"^lr 0: must be above 0"):
        checked_value(OptimOptions, "lr", 0, "lr")
