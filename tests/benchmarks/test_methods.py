"""All methods side by side: equal epochs, and which rows cannot be told apart."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.methods import ARMS, SCRATCH
from benchmarks.methods_tables import DENSE, level, ranked, table
from benchmarks.results_log import Line, pack
from hybridprune.pruning.make_plan import sparsity_of


@pytest.mark.parametrize("name", ARMS)
def test_all_arms_train_for_as_many_epochs(name: str) -> None:
    arm = ARMS[name]
    trainings = sparsity_of(arm.method).trainings
    sparse, tune = arm.epochs(base=60, more=10)
    fresh = name == SCRATCH or (trainings and trainings[0].fresh)
    assert sparse * len(trainings) + tune == (70 if fresh else 10)
    anew = sparsity_of(arm.method).anew
    assert tune == (70 if name == SCRATCH else 35 if anew else 4 if trainings else 10)


def line(arm: str, right: int, target: float = 0.5) -> Line:
    """One that gets the first ``right`` of 1000 images right."""
    correct = pack(np.arange(1000) < right)
    key = {"network": "n", "images_trained": None, "base": 0, "more": 10, "seed": 0}
    epochs = {"sparse_epochs": 0, "tune_epochs": 10}
    found = {"accuracy": right / 1000, "correct": correct, "images": 1000, "share": target, "params": 1}
    return {"arm": arm, "target": target, **key, **epochs, **found}


def test_rows_are_sorted_and_say_whom_they_are_level_with() -> None:
    """One image of a thousand is noise, fifty are not."""
    lines = [line("uniform", 600), line("a", 650), line("b", 601), line("c", 649), line("d", 700, 0.3)]
    rows = ranked([line(DENSE, 800, 1.0), *lines], ("n", None, 0, 10, 0), 0.5)
    assert [(row["arm"], row.get("place"), row.get("level")) for row in rows] == [
        (DENSE, None, None), ("a", 1, (1, 2)), ("c", 2, (1, 2)), ("b", 3, (3, 4)), ("uniform", 4, (3, 4)),
    ]  # fmt: skip
    assert rows[1]["ahead"].mean == pytest.approx(0.05) and rows[4]["ahead"] is None
    assert "| 2 | c | 50.00 | 1 | 0 | 10 | 64.90 | +4.90 [" in table(rows)
    assert level([lines[1]], 0) == (1, 1)
