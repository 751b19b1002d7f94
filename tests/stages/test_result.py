"""What a stage prints of a finished run, whichever version made it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hybridprune.errors import UserError
from hybridprune.stages.result import show_result
from hybridprune.store.run_folder import RunFolder

RESULT: dict[str, Any] = {
    "test": {
        "always_on": {"accuracy": 0.5},
        "routed": {"accuracy": 0.4, "expected_macs": 50.0, "mean_rate": 0.5, "block_rates": [0.25, 0.75]},
    },
    "dense": {"macs": 100, "params": 10},
    "macs": {"backbone": 60, "gates": 1},
}


@pytest.mark.parametrize(("more", "shown"), [({}, False), ({"effective_sparsity": 0.375}, True)])
def test_runs_of_older_versions_are_shown_too(
    more: dict[str, Any], shown: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show_result(RunFolder(tmp_path), {**RESULT, **more})
    said = capsys.readouterr().out
    assert "test accuracy 50.00%" in said and "(60.0% of dense)" in said and "0.25 0.75" in said
    assert ("effective sparsity: 37.5%" in said) == shown


@pytest.mark.parametrize("reading", ["always_on", "routed"])
@pytest.mark.parametrize(("loss", "headline"), [(1.5, "finished: "), (None, "ended, not finite on some images: ")])
def test_a_network_that_is_not_finite_is_not_called_finished(
    reading: str, loss: float | None, headline: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test = {**RESULT["test"], reading: {**RESULT["test"][reading], "loss": loss}}
    show_result(RunFolder(tmp_path), {**RESULT, "test": test})
    assert capsys.readouterr().out.startswith(f"{headline}{tmp_path}\n")


@pytest.mark.parametrize(
    "damage",
    [
        {"test": {"always_on": {"accuracy": 0.5}, "routed": {}}},
        {"test": {"always_on": {}, "routed": RESULT["test"]["routed"]}},
        {"dense": {"macs": 0}},
        {"macs": []},
        {"target": 5},
        {"effective_sparsity": "much"},
    ],
)
def test_what_is_no_result_is_told_in_a_line(
    damage: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=r"result\.json: not a run's result .*; restore the file") as refused:
        show_result(RunFolder(tmp_path), {**RESULT, **damage})
    assert "\n" not in str(refused.value) and capsys.readouterr().out == ""
