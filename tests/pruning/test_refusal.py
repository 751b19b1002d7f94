"""A budget below the floor is refused with its cause and with what to do."""

from __future__ import annotations

from typing import Any

import pytest

from hybridprune.config import CutOptions
from hybridprune.pruning.budget.space import Cost, InfeasibleBudget, taken_as
from hybridprune.pruning.left_alone import GROUPED, JOINED
from hybridprune.pruning.refusal import refusal_of

DENSE, FLOOR = Cost(1000, 100), Cost(900, 80)
REACHED = "below what --prune_ratio_limit 0.9 allows; the floor is 0.9000 of the FLOPs (1,800) and 0.8000 of the "
REACHED += "parameters (80)"


def refused(left_alone: dict[str, str] | None = None, **options: Any) -> str:
    return str(refusal_of(CutOptions(**options), InfeasibleBudget(FLOOR, left_alone), DENSE))


def test_only_what_was_given_is_named() -> None:
    assert refused(target_flops=0.5) == f"--target_flops 0.5: {REACHED}; give a larger budget"
    assert refused(target_params=0.5).startswith("--target_params 0.5: below")
    assert refused(target_flops=0.5, target_params=0.25).startswith("--target_flops 0.5, --target_params 0.25: below")


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ({"target_flops": 50.0}, "--target_flops 50.0: 50 is taken as 50 FLOPs, for 50 % give --target_flops 0.5; "),
        ({"target_flops": 1.5}, "--target_flops 1.5: 1.5 is taken as 1.5 FLOPs, for 1.5 % give --target_flops 0.015; "),
        (
            {"target_params": 30},
            "--target_params 30.0: 30 is taken as 30 parameters, for 30 % give --target_params 0.3; ",
        ),
    ],
)
def test_percent_is_told_from_shares(target: dict[str, Any], told: str) -> None:
    assert refused(**target) == told + REACHED


def test_shares_and_numbers_of_flops_are_no_percent() -> None:
    assert taken_as({"--target_flops": 1.0, "--target_params": None}) == ""
    assert taken_as({"--target_flops": 101.0}) == ""


def test_the_layers_left_alone_are_named_by_reason() -> None:
    alone = {"a": JOINED, "b": JOINED, "c": "c is c", "d": JOINED, "e": JOINED, "f": JOINED}
    told = refused(alone, target_flops=0.5, method="l1")
    assert f"{REACHED}; left alone: a, b, d and 2 more ({JOINED}); c (c is c); give a larger budget, or " in told
    assert "or --use_out_dependencies, or a --method that cuts directions, such as fisher-tucker" in told
    assert "--use_out" not in refused(alone, target_flops=0.5, method="l1", use_out_dependencies=True)
    assert "--use_out" not in refused({"c": "c is c"}, target_flops=0.5, method="l1")
    assert "cuts directions" not in refused(alone, target_flops=0.5, method="fisher-tucker")
    grouped = {"d": GROUPED}
    assert "; give a larger budget, or a --method that cuts channels, such as taylor, which takes" in refused(grouped)
    assert "cuts channels" not in refused(grouped, method="l1") and "cuts channels" not in refused(alone)
    assert refused(target_flops=0.5, exclude=("a",)).endswith("give a larger budget, or fewer layers to --exclude")
