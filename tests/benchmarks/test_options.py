"""The arms of the benchmark of options: their flags exist, and each stands beside an arm that runs."""

from __future__ import annotations

import shlex

import numpy as np
import pytest

from benchmarks.options import ARMS, PARENT, SHARED, Arm, table
from benchmarks.results_log import pack
from hybridprune.config import PruneConfig, RlConfig, SpConfig, resolve


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: f"{arm.stage} {arm.flags}")
def test_an_arm_is_a_command_line_and_changes_something(arm: Arm) -> None:
    shared = shlex.split(SHARED[arm.stage])
    bare, given = ([*shared, *shlex.split(flags)] for flags in (arm.base, arm.flags))
    if arm.stage == "prune":
        configs = [resolve(PruneConfig(), argv, prog="", description="").config for argv in (bare, given)]
    else:
        configs = [resolve(RlConfig(), argv, prog="", description="").config for argv in (bare, given)]
    assert (configs[0] == configs[1]) == (arm.flags == arm.base)
    assert Arm(arm.stage, arm.base, arm.base) in ARMS or any(
        (each.stage, each.flags) == (arm.stage, arm.base) for each in ARMS
    )


def test_the_parent_is_a_command_line() -> None:
    assert resolve(SpConfig(), shlex.split(PARENT), prog="", description="").config.stage.epochs == 6


def test_a_row_stands_beside_its_base() -> None:
    def line(flags: str, seed: int, right: int) -> dict[str, object]:
        correct = np.arange(10) < right
        return {
            "stage": "rl", "flags": flags, "seed": seed, "share": 0.6, "images": 10, "correct": pack(correct),
            "accuracy": right / 10,
        }  # fmt: skip

    shown = table([line("", 0, 5), line("", 1, 6), line("--gamma 0.9", 0, 9)], "rl").splitlines()
    assert shown[2] == "| defaults | 60.0 | 50.0 60.0 |  |  |"
    assert shown[3].startswith("| `--gamma 0.9` | 60.0 | 90.0 | +40.00 [") and shown[3].endswith("| defaults |")
    assert len(shown) == 4
