from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from hybridprune.config import PruneConfig, RlConfig, SpConfig, resolve
from hybridprune.errors import UserError
from hybridprune.grid.grid import read_grid, runs

GRID: dict[str, Any] = {
    "result_dir": "out",
    "seeds": [0, 7],
    "common": {"width": [4, 8], "depth": 8},
    "sp": {"epochs": 2},
    "prune": {"target_flops": [0.5, 0.25], "config_path": "config.json", "scheduler_params": {"0": 1, "1": 0}},
    "rl": {"alpha": [0.1, 1, 10], "channels_last": False, "max_train_samples": None},
}


def test_every_combination_is_run_once_and_starts_from_its_own() -> None:
    found = list(runs(GRID))
    assert len(found) == 2 * 2 * (1 + 2 + 2 * 3)
    assert len({run.name for run in found}) == len(found)
    for place, run in enumerate(found):
        assert run.parent is None or run.parent in found[:place]
    leaves = {
        (dict(run.flags)["width"], run.seed, dict(run.parent.flags)["target_flops"], dict(run.flags)["alpha"])
        for run in found
        if run.stage == "rl" and run.parent is not None
    }
    assert leaves == set(itertools.product([4, 8], [0, 7], [0.5, 0.25], [0.1, 1, 10]))
    for run in found:
        if run.parent is not None:
            assert run.parent.seed == run.seed and dict(run.parent.flags)["width"] == dict(run.flags)["width"]
            assert (run.stage, run.parent.stage) in (("rl", "prune"), ("prune", "sp"))


def test_experiments_say_what_was_swept_and_seeds_share_them() -> None:
    found = list(runs(GRID))
    names: dict[str, set[int]] = {}
    for run in found:
        names.setdefault(run.experiment, set()).add(run.seed)
    assert all(seeds == {0, 7} for seeds in names.values()) and len(names) == 2 * (1 + 2 + 6)
    assert "width=8,prune.target_flops=0.25,rl.alpha=10" in names and "width=4" in names
    assert {run.experiment for run in runs({"sp": {}, "seeds": [0, 1]})} == {"default"}
    assert {run.experiment for run in runs({"sp": {"lr": [1, 2]}, "exp_name": "mine"})} == {
        "mine,sp.lr=1",
        "mine,sp.lr=2",
    }


def test_names_are_folders_names_and_stay_apart() -> None:
    values = ["a/b", "a b", "a:b", "x" * 300, "x" * 299, "../.."]
    names = [run.experiment for run in runs({"sp": {"weights": values}})]
    assert len(set(names)) == len(values)
    assert all("/" not in name and " " not in name and len(name) < 200 for name in names)


def test_arguments_are_what_the_stages_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    grid = GRID | {"prune": GRID["prune"] | {"config_path": str(tmp_path / "config.json"), "exclude": "a,b"}}
    for run in runs(grid):
        default = {"sp": SpConfig(), "prune": PruneConfig(), "rl": RlConfig()}[run.stage]
        config = resolve(default, run.arguments, prog="", description="").config
        assert (config.run.seed, config.run.exp_name, config.run.result_dir) == (run.seed, run.experiment, "out")
        assert config.network.width == dict(run.flags)["width"] and config.network.depth == 8
        if isinstance(config, PruneConfig):
            assert config.cut.target_flops == dict(run.flags)["target_flops"]
            assert config.optim.scheduler_params == {"0": 1, "1": 0} and config.cut.exclude == ("a", "b")
        if isinstance(config, RlConfig):
            assert config.stage.reward_scale == dict(run.flags)["alpha"]
            assert config.optim.channels_last is False and config.data.max_train_samples is None


def test_stages_may_be_left_out() -> None:
    assert [(run.stage, run.parent and run.parent.stage) for run in runs({"sp": {}, "rl": {}})] == [
        ("sp", None),
        ("rl", "sp"),
    ]
    (alone,) = runs({"prune": {"checkpoint_file": "somewhere"}})
    assert alone.parent is None and alone.arguments[:2] == ["--checkpoint_file", "somewhere"]


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ([], "one JSON object"),
        ({}, "none of the stages"),
        ({"seeds": [0]}, "none of the stages"),
        ({"sp": {}, "prunes": {}}, "'prunes', did you mean prune"),
        ({"sp": {}, "seeds": 3}, "seeds 3"),
        ({"sp": {}, "seeds": []}, "seeds"),
        ({"sp": {}, "seeds": [0, 0]}, "holds a value twice"),
        ({"sp": {}, "seeds": [-1]}, "seeds"),
        ({"sp": {}, "seeds": [True]}, "seeds"),
        ({"sp": {}, "result_dir": 3}, "result_dir 3"),
        ({"sp": {}, "exp_name": "a/b"}, "exp_name"),
        ({"sp": 3}, "sp 3"),
        ({"sp": {"lr": []}}, "sp: lr"),
        ({"sp": {"lr": [[1]]}}, "sp: lr"),
        ({"sp": {"lr": [1, 1]}}, "holds a value twice"),
        ({"sp": {"seed": 1}}, "seeds"),
        ({"common": {"result_dir": "x"}, "sp": {}}, "result_dir"),
        ({"sp": {"resume": True}}, "resume"),
        ({"sp": {}, "prune": {"checkpoint_file": "x"}}, "checkpoint_file"),
    ],
)
def test_what_is_no_grid(grid: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words.replace("'", ".")):
        list(runs(grid))
    path = tmp_path / "grid.json"
    path.write_text(json.dumps(grid))
    with pytest.raises(UserError, match="GRID"):
        read_grid(path)


@pytest.mark.parametrize("content", [None, "{", "\udcff"])
def test_a_file_that_is_missing_or_no_json(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "grid.json"
    if content is not None:
        path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=r"GRID .*grid\.json"):
        read_grid(path)
