"""The arms of benchmarks/hybrid_arms.py: their options are valid, and what is recorded is not run again."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import hybrid_arms
from benchmarks.hybrid_arms import run_arm
from benchmarks.hybrid_bench import CONTROLS, DYNAMIC_ARMS, POLICY, STATIC_NAMES, Bench, routing_options
from benchmarks.results_log import Line, append_line, read_lines

NAMES = (*STATIC_NAMES, *DYNAMIC_ARMS, *CONTROLS)


@pytest.mark.parametrize("name", DYNAMIC_ARMS)
def test_a_dynamic_arms_options_are_those_of_stage_3(name: str) -> None:
    given = {**POLICY, **DYNAMIC_ARMS[name]}
    options = routing_options(name, 0.38, 6)
    for field in dataclasses.fields(options):
        choices = field.metadata["choices"]
        assert choices is None or getattr(options, field.name) in choices, field.name
    # No two arms are the same one.
    assert [other for other in DYNAMIC_ARMS if {**POLICY, **DYNAMIC_ARMS[other]} == given] == [name]


def test_each_arm_and_pair_of_budgets_has_a_folder_of_its_own() -> None:
    static: Any = SimpleNamespace(seed=3)
    benches = [Bench(static, Path("work"), f1, f2, (1, 6), 1000) for f1, f2 in ((0.5, 0.38), (0.25, 0.18))]
    folders = {bench.run_of(name).path for bench in benches for name in NAMES}
    assert len(folders) == 2 * len(NAMES) and all(folder.name.endswith("-1+6epochs-seed3") for folder in folders)


class Stub:
    """Says which of `Bench`'s methods was called."""

    def run_static(self, name: str) -> Line:
        return {"called": ("static", name)}

    def run_dynamic(self, name: str) -> Line:
        return {"called": ("dynamic", name)}

    def run_fixed(self) -> Line:
        return {"called": ("fixed",)}

    def run_random(self, name: str, rates: Tensor) -> Line:
        return {"called": ("random", name, rates.tolist())}


def test_every_name_is_an_arm() -> None:
    bench: Any = Stub()
    lines: list[Line] = [
        {"arm": "static at F1", "validation": 0.9},
        {"arm": "gumbel", "validation": 0.5, "rates": [1.0, 0.25]},
        {"arm": "self-critical", "validation": 0.6, "rates": [0.0, 0.5]},
        {"arm": "counterfactual", "validation": 0.4, "rates": [1.0, 1.0]},
    ]
    called = {name: run_arm(bench, name, lines)["called"] for name in NAMES}
    assert called == {
        **{name: ("static", name) for name in STATIC_NAMES},
        **{name: ("dynamic", name) for name in DYNAMIC_ARMS},
        "fixed subset": ("fixed",),
        "random gates": ("random", "random gates", [0.0, 0.5]),  # of the best on validation
    }
    as_gumbel = run_arm(bench, "random gates as gumbel", lines)
    assert as_gumbel == {"called": ("random", "random gates as gumbel", [1.0, 0.25]), "rates_of": "gumbel"}


def test_what_is_recorded_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "lines.jsonl"
    shared = {"depth": 8, "f1": 0.5, "f2": 0.38, "epochs": [1, 1], "seed": 0}
    append_line(results, {"arm": "gumbel", **shared, "share": 0.38})
    append_line(results, {"arm": "static at F1", **shared, "seed": 1})  # another seed's does not count
    with results.open("a") as file:
        file.write('{"arm": "static at F2"')  # torn by a kill
    bench = SimpleNamespace(images=SimpleNamespace(device=torch.device("cpu")), seed=0)
    ran: list[tuple[str, list[str]]] = []

    def run(bench: Bench, name: str, lines: list[Line]) -> Line:
        assert (bench.f1, bench.f2, bench.epochs) == (0.5, 0.38, (1, 1))
        ran.append((name, [line["arm"] for line in lines]))
        return {"share": 0.5, "accuracy": 0.25}

    monkeypatch.setattr(hybrid_arms, "RESULTS", results)
    monkeypatch.setattr(hybrid_arms, "run_arm", run)
    monkeypatch.setattr(hybrid_arms.StaticBench, "of", lambda *_: bench)
    command = [
        "hybrid_arms",
        "--depth",
        "8",
        "--work",
        str(tmp_path),
        "--arms",
        "static at F1",
        "gumbel",
        "static at F2",
    ]
    monkeypatch.setattr("sys.argv", command)
    hybrid_arms.main()
    # An arm is given the lines of its own settings.
    assert ran == [("static at F1", ["gumbel"]), ("static at F2", ["gumbel", "static at F1"])]
    assert [line["arm"] for line in read_lines(results)] == ["gumbel", "static at F1", "static at F1", "static at F2"]
    last = read_lines(results)[-1]
    assert {key: last[key] for key in shared} == shared and (last["share"], last["precision"]) == (0.5, "bf16")
    assert "static at F2 {'share': 0.5, 'accuracy': 0.25}" in capsys.readouterr().out
    hybrid_arms.main()
    assert len(ran) == 2 and len(read_lines(results)) == 4
    monkeypatch.setattr("sys.argv", [*command, "--seed", "2"])
    hybrid_arms.main()
    assert [name for name, _ in ran[2:]] == ["static at F1", "gumbel", "static at F2"] and ran[2][1] == []
