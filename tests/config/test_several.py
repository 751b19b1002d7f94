"""Options of several values, which are several runs, and lists with an entry for each iteration, which are one run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hybridprune.config import Invocation, PruneConfig, RlConfig, resolve
from hybridprune.errors import UserError
from hybridprune.grid.grid import runs
from hybridprune.stages import prune


def parse(flags: str, path: Path | None = None) -> Invocation[PruneConfig]:
    return resolve(PruneConfig(), flags.split(), prog="", description="", config_path=path and str(path))


@pytest.mark.parametrize("name", ["target_flops", "target_params", "target_latency", "prune_ratio"])
def test_each_run_is_configured_as_its_value_alone(name: str) -> None:
    several = parse(f"--lr 0.01 --exp_name mine --{name} 0.5 0.25").each()
    for run, value in zip(several, ("0.5", "0.25"), strict=True):
        alone = parse(f"--lr 0.01 --exp_name mine,prune.{name}={value} --{name} {value}")
        assert run.config == alone.config and run.several is None
    assert len(parse(f"--{name} 0.5").each()) == 1


def test_they_are_called_as_a_grid_calls_them(tmp_path: Path) -> None:
    budgets = [0.5, 1, 2000000]
    swept = [run.experiment for run in runs({"prune": {"target_flops": budgets}})]
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"target_flops": budgets}))
    assert [run.config.run.exp_name for run in parse("", path).each()] == swept
    path.write_text('{"target_flops": [0.5]}')
    assert [run.config.run.exp_name for run in parse("", path).each()] == ["default"]


def test_the_printed_configuration_has_the_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty.json"
    empty.write_text("{}")
    flags = "--exp_name mine --target_flops 0.5 0.25 --max_iter 2 --iter_epochs 3,0 --iter_lrs 0.5,0.25"
    prune.main([*flags.split(), "--config_path", str(empty), "--print-config"])
    path = tmp_path / "config.json"
    path.write_text(capsys.readouterr().out)
    assert parse("", path).each() == parse(flags).each()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--target_flops 0.5 0.5", ("--target_flops [0.5, 0.5]", "each value once")),
        ("--target_flops 0.5 -1", ("--target_flops -1.0", "above 0")),
        ("--target_flops 0.5 none", ("--target_flops", "must be a number")),
        ("--target_flops 0.5,0.25", ("--target_flops", "must be a number")),
        ("--target_flops 0.5 0.4 --target_params 0.5 0.4", ("--target_flops 0.5 0.4, --target_params", "grid")),
        ("--prune_ratio 0.5 0.4 --target_flops 0.5", ("--prune_ratio 0.5 0.4", "--target_flops none")),
        ("--prune_ratio 0.5 0.4 --iter_ratios 0.5", ("--prune_ratio 0.5 0.4", "--iter_ratios none")),
        ("--max_iter 3 --iter_epochs 10,20", ("--iter_epochs 10,20: has 2 entries for --max_iter 3",)),
        (
            "--iter_ratios 0.5,0.25",
            ("--iter_ratios 0.5,0.25: has 2 entries for --max_iter 1", "several values of a budget"),
        ),
        ("--max_iter 2 --iter_lrs 0.1,0", ("--iter_lrs", "above 0")),
        ("--max_iter 2 --iter_lrs 0.1,nan", ("--iter_lrs", "finite")),
        ("--max_iter 2 --iter_epochs 1.5,2", ("--iter_epochs", "whole numbers")),
        ("--iter_epochs 1 2", ("2: no such flag",)),
        ("--max_iter 2 --iter_ratios 0.5,0.4 --target_flops 0.5", ("--iter_ratios 0.5,0.4", "--target_flops none")),
    ],
)
def test_refused_in_a_line(flags: str, words: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as refused:
        parse(flags).each()
    assert all(word in str(refused.value) for word in words) and "\n" not in str(refused.value), refused.value


@pytest.mark.parametrize(
    ("values", "words"), [([], "one at least"), ([0.5, None], "must be a number"), ("0.5", "number")]
)
def test_refused_in_a_file(values: Any, words: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"target_flops": values}))
    with pytest.raises(UserError, match=words):
        parse("", path)


def test_stage_3_has_one_budget() -> None:
    with pytest.raises(UserError, match=r"0\.25: no such flag"):
        resolve(RlConfig(), ["--target_flops", "0.5", "0.25"], prog="", description="")
