"""Runs whose validation images are test images: the weights that they start from have seen all training images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hybridprune.data import make_split
from hybridprune.data.digits import load_digits
from tests.cli.tiny_runs import STAGES, assert_refused, folder_of, run_here, stage

FLAG = ("--validation_from", "test")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("results")
    for name in STAGES:
        done = stage(name, "--result_dir", results, *FLAG)
        assert done.returncode == 0, done.stderr
    return results


def read(results: Path, name: str, file: str) -> dict[str, Any]:
    return json.loads((folder_of(results, name) / file).read_text())


@pytest.mark.full
def test_all_stages_choose_on_a_fifth_of_the_test_images_and_train_on_all_training_images(runs: Path) -> None:
    data = load_digits(resize=8)
    held = len(make_split(data.test.labels, 0.2, seed=0).validation)
    for name in STAGES:
        split = read(runs, name, "split.json")
        assert split["total"] == len(data.train) + held
        assert split["validation"] == list(range(len(data.train), split["total"]))


@pytest.mark.full
def test_commands_find_the_same_images_again(runs: Path) -> None:
    data = load_digits(resize=8)
    parts = make_split(data.test.labels, 0.2, seed=0)
    for part, count in (("test", len(parts.train)), ("validation", len(parts.validation))):
        done = run_here("hybridprune.evaluate", folder_of(runs, "rl"), "--device", "cpu", "--split", part)
        assert f"{count} {part} images" in done.stdout, done.stderr
        accuracy = read(runs, "rl", "result.json")[part]["routed"]["accuracy"]
        assert f"accuracy {accuracy:.4f}" in done.stdout


def test_a_stage_without_it_does_not_take_a_parent_with_it(runs: Path) -> None:
    assert_refused(stage("prune", "--result_dir", runs, "--exp_name", "other"), "--validation_from")


def test_what_a_folder_says_of_it_is_checked(runs: Path) -> None:
    file = folder_of(runs, "rl") / "config.json"
    before = file.read_text()
    try:
        file.write_text(json.dumps({**json.loads(before), "validation_from": "nowhere"}))
        refused = run_here("hybridprune.evaluate", folder_of(runs, "rl"), "--device", "cpu")
        assert_refused(refused, "validation_from", "nowhere")
    finally:
        file.write_text(before)
