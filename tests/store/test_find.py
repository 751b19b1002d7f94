"""Which run is the parent."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hybridprune.errors import UserError
from hybridprune.models.spec import NetworkSpec
from hybridprune.store.find import find_parent, named_parent, runs_under
from hybridprune.store.run_folder import RunFolder, RunSpec
from tests.store.run_folders import FACTORED, SPEC, make_run

STAGES = ("sp", "prune")


# --- parents ---


def untold(line: str) -> None:
    raise AssertionError(line)


def _spec(run: RunFolder, content: str) -> None:
    (run.path / "spec.json").write_text(content)


def _result(run: RunFolder, content: str) -> None:
    (run.path / "result.json").write_text(content)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda run: _spec(run, "{"),
        lambda run: _spec(run, json.dumps({**SPEC.to_json(), "format": 2})),
        lambda run: (run.path / "spec.json").unlink(),
        lambda run: _result(run, "{"),
        lambda run: _result(run, '{"model_sha256": "0"}'),
        lambda run: _result(run, '{"seed": "0"}'),
        lambda run: _result(run, "[]"),
    ],
)
def test_one_broken_or_newer_run_is_passed_over(spoil: Callable[[RunFolder], Any], tmp_path: Path) -> None:
    good, broken = make_run(tmp_path / "b", age=10), make_run(tmp_path / "a", age=0)
    spoil(broken)
    told: list[str] = []
    assert find_parent(tmp_path, SPEC, "sp", 0, told.append) == good
    (line,) = told
    assert line.startswith(f"warning: {broken.path} is passed over: ") and "\n" not in line


def test_a_broken_run_that_is_named_is_an_error(tmp_path: Path) -> None:
    make_run(tmp_path / "b")
    broken = make_run(tmp_path / "a")
    _spec(broken, "{")
    with pytest.raises(UserError, match="missing or broken"):
        named_parent(broken.path, SPEC, STAGES)


def changed(network: dict[str, Any] | None = None, **spec: Any) -> RunSpec:
    return dataclasses.replace(SPEC, network=dataclasses.replace(SPEC.network, **(network or {})), **spec)


OTHERS = [
    (changed({"depth": 14}), "depth 14, not 8"),
    (changed({"width": 4}), "width 4, not 2"),
    (changed(dataset="birds"), "data set birds, not insects"),
    (changed(input_size=16), "input size 16, not 8"),
    (changed(dataset_digest="d2"), "been trained on other images of insects"),
]


def test_the_newest_matching_run_of_the_stage_is_the_parent(tmp_path: Path) -> None:
    make_run(tmp_path / "a" / "old", age=100)
    newest = make_run(tmp_path / "b" / "new", age=10)
    make_run(tmp_path / "c" / "older", age=1000)
    make_run(tmp_path / "d" / "pruned", FACTORED, age=0)
    make_run(tmp_path / "e" / "unfinished", finished=False)
    for number, (other, _) in enumerate(OTHERS):
        make_run(tmp_path / "f" / str(number), other, age=0)
    assert find_parent(tmp_path, SPEC, "sp", 0, untold) == newest


def test_edits_of_the_parent_do_not_matter(tmp_path: Path) -> None:
    pruned = make_run(tmp_path / "pruned", FACTORED)
    assert find_parent(tmp_path, SPEC, "prune", 0, untold) == pruned


@pytest.mark.parametrize(("other", "difference"), OTHERS, ids=[difference for _, difference in OTHERS])
def test_no_match_says_what_is_there(other: RunSpec, difference: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", other)
    with pytest.raises(UserError) as caught:
        find_parent(tmp_path, SPEC, "sp", 0, untold)
    message = str(caught.value)
    assert f"no finished run to start from ({run.path} has {difference})" in message
    assert "run hybridprune train (main_sp.py) first" in message and "--checkpoint_file" in message
    for named in (run.path, run.model_file):
        with pytest.raises(UserError, match=rf"--checkpoint_file {re.escape(str(named))}: that run has {difference}"):
            named_parent(named, SPEC, STAGES)


@pytest.mark.parametrize(
    ("stage", "script"), [("sp", "train \\(main_sp.py\\)"), ("prune", "prune \\(main_prune.py\\)")]
)
def test_an_empty_or_absent_folder_names_the_stage_to_run(stage: str, script: str, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UserError, match=f"no finished run to start from; run hybridprune {script} first"):
            find_parent(folder, SPEC, stage, 0, untold)


@pytest.mark.parametrize(("stage", "spec"), [("sp", SPEC), ("prune", FACTORED)])
def test_of_several_seeds_the_own_one_is_taken(stage: str, spec: RunSpec, tmp_path: Path) -> None:
    runs = {seed: make_run(tmp_path / f"seed{seed}", spec, seed=seed, age=10 * seed) for seed in (0, 1, 7)}
    for seed, run in runs.items():
        assert find_parent(tmp_path, SPEC, stage, seed, untold) == run


def test_the_own_seed_does_not_make_another_network_match(tmp_path: Path) -> None:
    make_run(tmp_path / "other", OTHERS[0][0], seed=1)
    run = make_run(tmp_path / "run", seed=0)
    assert find_parent(tmp_path, SPEC, "sp", 1, untold) == run


def test_seeds_must_be_chosen_between_where_the_own_one_does_not_tell(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 7))]
    message = r"runs of seeds 0, 7 match, {} of --seed {}; choose one with --checkpoint_file, e\.g\. {}$"
    with pytest.raises(UserError, match=message.format("none", 3, re.escape(str(runs[2].path)))):
        find_parent(tmp_path, SPEC, "sp", 3, untold)
    with pytest.raises(UserError, match=message.format(2, 0, re.escape(str(runs[1].path)))):
        find_parent(tmp_path, SPEC, "sp", 0, untold)


def test_a_named_run_is_taken_by_folder_or_weights(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", FACTORED)
    assert named_parent(run.path, SPEC, STAGES) == run
    assert named_parent(run.model_file, SPEC, STAGES) == run


def test_a_named_run_of_another_stage(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", FACTORED)
    with pytest.raises(UserError, match=r"--checkpoint_file .*: that run has stage prune, not rl or sp; name a"):
        named_parent(run.path, SPEC, ("sp", "rl"))


def test_a_named_run_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", make_run(tmp_path / "run").path / "best.safetensors"):
        with pytest.raises(UserError, match=r"--checkpoint_file .*: no such run"):
            named_parent(path, SPEC, STAGES)


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"spec\.json: missing or broken"):
        named_parent(tmp_path, SPEC, STAGES)


def test_runs_under_lists_finished_ones_in_order(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name) for name in ("a/x", "b", "c/d/e")]
    make_run(tmp_path / "b2", finished=False)
    assert [found.run for found in runs_under(tmp_path, untold)] == runs


def test_another_backbone_is_a_difference(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    wanted = dataclasses.replace(SPEC, network=NetworkSpec("vgg", 8, 2, 3))
    with pytest.raises(UserError, match="has network resnet, not vgg"):
        named_parent(tmp_path / "run", wanted, STAGES)


def test_options_that_shape_the_network_are_a_difference(tmp_path: Path) -> None:
    pyramid = NetworkSpec("pyramidnet", 8, 2, 3, pyramid_alpha=6)
    there = dataclasses.replace(SPEC, network=pyramid)
    make_run(tmp_path / "run", there)
    for change, difference in (
        ({"bottleneck": True}, "bottleneck False, not True"),
        ({"pyramid_alpha": 7}, "pyramid_alpha 6, not 7"),
        ({"shakedrop": 0.5}, "shakedrop 0.0, not 0.5"),
    ):
        wanted = dataclasses.replace(SPEC, network=dataclasses.replace(pyramid, **change))
        with pytest.raises(UserError, match=f"has {difference}"):
            named_parent(tmp_path / "run", wanted, STAGES)
    assert find_parent(tmp_path, there, "sp", 0, untold).path == tmp_path / "run"


@pytest.mark.parametrize(
    ("network", "unread"),
    [("resnet", {"pyramid_alpha": 7}), ("torchvision:squeezenet1_1", {"depth": 50, "width": 1})],
)
def test_options_that_the_network_does_not_read_are_none(network: str, unread: dict[str, Any], tmp_path: Path) -> None:
    make_run(tmp_path / "run", changed({"network": network}))
    assert named_parent(tmp_path / "run", changed({"network": network, **unread}), STAGES).path == tmp_path / "run"
