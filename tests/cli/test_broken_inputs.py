"""A user's mistake costs exit code 2 and one line that names it; a run that fails by itself exits 1."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import hybridprune
from hybridprune.errors import UserError
from tests.cli.tiny_runs import (
    DIGITS,
    OWN,
    SCRIPTS,
    STAGES,
    TINY,
    Result,
    assert_refused,
    contents,
    folder_of,
    run_here,
    stage,
)
from tests.processes import run_forked

FLAGS: list[tuple[tuple[str, ...], tuple[str, ...]]] = [
    (("--epochz", "3"), ("--epochz", "--epochs")),
    (("--epoch=3",), ("--epoch",)),
    (("stray",), ("stray",)),
    (("--epochs", "three"), ("--epochs", "three", "whole number")),
    (("--epochs", "1.5"), ("--epochs", "1.5")),
    (("--epochs", "-1"), ("--epochs", "-1", "at least 0")),
    (("--epochs", "0"), ("--epochs 0", "--weights")),
    (("--epochs",), ("--epochs",)),
    (("--lr", "fast"), ("--lr", "fast")),
    (("--lr", "nan"), ("--lr",)),
    (("--lr", "0"), ("--lr", "above 0")),
    (("--bs", "1"), ("--bs", "1")),
    (("--depth", "9"), ("--depth", "9", "6n + 2")),
    (("--network", "resnext"), ("--network", "resnext")),
    (("--dataset", "digit"), ("--dataset", "digits")),
    (("--resize", "4"), ("--resize", "4")),
    (("--device", "nonsense"), ("--device", "nonsense")),
    (("--device", "meta"), ("--device", "meta")),
    (("--device", "cuda:99"), ("--device", "cuda:99")),
    (("--precision", "fp8"), ("--precision", "fp8")),
    (("--scheduler_id", "4"), ("--scheduler_id", "4")),
    (("--scheduler_params", "{0.5: 1}"), ("--scheduler_params",)),
    (("--max_train_samples", "1"), ("--max_train_samples", "1")),
    (("--seed", "-1"), ("--seed", "-1")),
    (("--weights", "nowhere.pt"), ("--weights", "nowhere.pt")),
    (("--weights", "nowhere.safetensors"), ("nowhere.safetensors",)),
    (("--config_path", "nowhere.json"), ("--config_path", "nowhere.json")),
]


@pytest.mark.parametrize(("flags", "words"), FLAGS, ids=lambda value: " ".join(value)[:30])
def test_flags(flags: tuple[str, ...], words: tuple[str, ...], tmp_path: Path) -> None:
    assert_refused(stage("sp", "--result_dir", tmp_path / "results", *flags), *words)
    assert not (tmp_path / "results").exists()


PRUNE_FLAGS = [
    (("--target_flops", "0"), ("--target_flops",)),
    (("--target_flops", "0.0001"), ("--target_flops", "--prune_ratio_limit", "floor")),
    (("--target_params", "5"), ("--target_params", "floor")),
    (("--prune_ratio_limit", "1"), ("--prune_ratio_limit",)),
    (("--method", "magic"), ("--method", "magic")),
    (("--allocation", "greedy"), ("--allocation", "greedy", "rate_distortion")),
    (("--pruner_id", "2"), ("--pruner_id", "2")),
    (("--exclude", "*"), ("--exclude", "*")),
    (("--exclude", "backbone.conw"), ("--exclude backbone.conw", "did you mean backbone.conv?")),
    (("--method", "nuspm", "--target_flops", "none"), ("nuspm", "give --target_flops")),
    (("--method", "peel", "--normalize"), ("--normalize", "peel")),
    (("--ma", "1"), ("--ma",)),
]


@pytest.mark.parametrize(("flags", "words"), PRUNE_FLAGS, ids=lambda value: " ".join(value)[:30])
def test_flags_of_pruning(flags: tuple[str, ...], words: tuple[str, ...], finished: Path) -> None:
    before = contents(finished)
    refused = stage("prune", "--result_dir", finished, "--exp_name", "broken", *flags)
    assert_refused(refused, *words)
    assert {path: stamp for path, stamp in contents(finished).items() if not path.startswith("broken")} == before
    assert_refused(stage("prune", "--result_dir", finished, "--exp_name", "broken", "--dry-run", *flags), *words)
    shutil.rmtree(finished / "broken", ignore_errors=True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", ("not valid JSON",)),
        ("", ("not valid JSON",)),
        ("[1]", ("one JSON object",)),
        ('{"epocs_start": 3}', ("unknown key", "epocs_start", "epochs_start")),
        ('{"lr": "0.1"}', ("lr", "without quotes")),
        ('{"epochs_start": 1.5}', ("epochs_start", "1.5")),
        ('{"normalize": 1}', ("normalize",)),
        ('{"lr": NaN}', ("lr", "finite")),
        ('{"sua": "false"}', ("sua", "without quotes")),
        ('{"exclude": "backbone.conv"}', ("exclude", "list of names")),
    ],
)
def test_configuration_files(text: str, words: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(text)
    assert_refused(run_here("main_prune.py", "--config_path", path, "--print-config"), "mine.json", *words)


def test_configuration_file_of_bytes(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_bytes(b"\xff\xfe\x00")
    assert_refused(run_here("main_prune.py", "--config_path", path, "--print-config"), "mine.json")


def unreadable(tree: Path) -> None:
    (tree / "train/disc/0.png").write_bytes((tree / "train/disc/0.png").read_bytes()[:40])


def no_image(tree: Path) -> None:
    (tree / "train/disc/notes.txt").write_text("notes")


def empty_class(tree: Path) -> None:
    for path in (tree / "train/disc").iterdir():
        path.unlink()


def one_class(tree: Path) -> None:
    for split in ("train", "test"):
        for name in ("disc", "vertical"):
            shutil.rmtree(tree / split / name)


def one_image(tree: Path) -> None:
    for path in sorted((tree / "train/disc").iterdir())[1:]:
        path.unlink()


def missing_test(tree: Path) -> None:
    shutil.rmtree(tree / "test")


def missing_tree(tree: Path) -> None:
    shutil.rmtree(tree)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (unreadable, ("train/disc/0.png", "cannot be decoded")),
        (no_image, ("train/disc/notes.txt", "--img_type")),
        (empty_class, ("train/disc", "no image")),
        (one_class, ("at least two",)),
        (one_image, ("at least two",)),
        (missing_test, ("no test folder",)),
        (missing_tree, ("--data_dir",)),
    ],
)
def test_image_trees(spoil: Callable[[Path], None], words: tuple[str, ...], image_tree: Path, tmp_path: Path) -> None:
    tree = Path(shutil.copytree(image_tree, tmp_path / "tree"))
    spoil(tree)
    data = (*TINY, "--dataset", "tree", "--data_dir", str(tree), "--resize", "16")
    assert_refused(stage("sp", "--result_dir", tmp_path / "results", data=data), *words)
    assert not (tmp_path / "results").exists()


def prune(results: Path, *args: object) -> Result:
    return stage("prune", "--result_dir", results, "--exp_name", "child", *args)


def test_no_parent(tmp_path: Path) -> None:
    for name, first in (("prune", "main_sp.py"), ("rl", "main_prune.py")):
        assert_refused(stage(name, "--result_dir", tmp_path / "results"), "--result_dir", first, "--checkpoint_file")
    assert not (tmp_path / "results").exists()


def test_parents_that_do_not_match(results: Path) -> None:
    assert_refused(prune(results, "--depth", "14"), "depth 8", "14")
    assert_refused(prune(results, "--width", "8", "--checkpoint_file", folder_of(results, "sp")), "width 4", "8")
    assert_refused(prune(results, "--resize", "16"), "input size 8", "16")
    assert_refused(prune(results, "--checkpoint_file", results / "nowhere"), "--checkpoint_file", "nowhere")
    assert_refused(prune(results, "--checkpoint_file", results), "spec.json")


def test_an_unfinished_parent(results: Path) -> None:
    (folder_of(results, "sp") / "result.json").unlink()
    assert_refused(prune(results), "no finished run", "main_sp.py")
    assert_refused(prune(results, "--checkpoint_file", folder_of(results, "sp")), "not finished", "--resume")


@pytest.mark.full
def test_parents_of_several_seeds(results: Path) -> None:
    assert stage("sp", "--result_dir", results, "--seed", 7, "--epochs", 1).returncode == 0
    assert_refused(prune(results, "--seed", 3), "0, 7", "--seed 3", "--checkpoint_file")
    for wanted in (("--seed", 7), ("--checkpoint_file", folder_of(results, "sp", seed=7))):
        done = prune(results, *wanted, "--dry-run")
        assert done.returncode == 0 and "sp-seed7" in done.stderr


def truncated(run: Path) -> None:
    model = run / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-100])


def torn_header(run: Path) -> None:
    (run / "model.safetensors").write_bytes(b"\x10\x00\x00")


def other_architecture(run: Path) -> None:
    tensors = load_file(run / "model.safetensors")
    tensors["backbone.conv.weight"] = tensors["backbone.conv.weight"][:2].clone()
    save_file(tensors, run / "model.safetensors")


def altered(run: Path) -> None:
    tensors = load_file(run / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, run / "model.safetensors")


def no_weights(run: Path) -> None:
    (run / "model.safetensors").unlink()


def edit(name: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def spoil(run: Path) -> None:
        record = json.loads((run / name).read_text())
        change(record)
        (run / name).write_text(json.dumps(record))

    return spoil


def write(name: str, text: str) -> Callable[[Path], None]:
    def spoil(run: Path) -> None:
        (run / name).write_text(text)

    return spoil


def network(**changes: object) -> Callable[[Path], None]:
    return edit("spec.json", lambda record: record["network"].update(changes))


BROKEN_RUNS: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "truncated": (truncated, ("model.safetensors", "truncated")),
    "torn header": (torn_header, ("model.safetensors", "truncated")),
    "other architecture": (other_architecture, ("model.safetensors", "another architecture", "backbone.conv.weight")),
    "altered": (altered, ("model.safetensors", "result.json")),
    "no weights": (no_weights, ("model.safetensors", "no such file")),
    "torn specification": (write("spec.json", "{"), ("spec.json",)),
    "specification is a list": (write("spec.json", "[]"), ("spec.json",)),
    "empty specification": (write("spec.json", "{}"), ("spec.json",)),
    "later format": (edit("spec.json", lambda record: record.update(format=99)), ("spec.json", "99")),
    "unknown backbone": (network(network="vgg"), ("vgg",)),
    "depth is a text": (network(depth="8"), ("depth",)),
    "edit of no layer": (network(edits=[{"layer": "nowhere", "rank_in": 1, "rank_out": 1}]), ("spec.json",)),
    "torn result": (write("result.json", "{"), ("result.json",)),
    "empty result": (write("result.json", "{}"), ("result.json",)),
}


@pytest.mark.parametrize("case", BROKEN_RUNS)
def test_broken_parents(case: str, results: Path) -> None:
    spoil, words = BROKEN_RUNS[case]
    run = folder_of(results, "sp")
    spoil(run)
    for command in (
        prune(results, "--checkpoint_file", run),
        run_here("hybridprune.evaluate", run),
    ):
        assert_refused(command, *words)
    with pytest.raises(UserError):
        hybridprune.load(run)
    assert not (results / "child").exists()


@pytest.mark.parametrize(
    ("name", "text"), [("split.json", "{"), ("split.json", "{}"), ("split.json", '{"validation": [5, 1], "total": 9}')]
)
def test_a_parents_broken_split(name: str, text: str, results: Path) -> None:
    run = folder_of(results, "sp")
    (run / name).write_text(text)
    assert_refused(prune(results), name)
    assert_refused(run_here("hybridprune.evaluate", run, "--split", "validation"), name)


def test_a_broken_configuration_of_a_run(results: Path) -> None:
    run = folder_of(results, "sp")
    for text in ("{", "[]", "{}"):
        (run / "config.json").write_text(text)
        refused = run_here("hybridprune.evaluate", run)
        assert_refused(refused)
    (run / "result.json").unlink()
    (run / "config.json").write_text("{")
    assert_refused(stage("sp", "--result_dir", results, "--resume"), "config.json")


def test_a_broken_training_state(results: Path) -> None:
    run = folder_of(results, "sp")
    (run / "result.json").unlink()
    state = (run / "train_state.pt").read_bytes()
    for broken in (state[: len(state) // 2], b"", b"no archive"):
        (run / "train_state.pt").write_bytes(broken)
        assert_refused(stage("sp", "--result_dir", results, "--resume"), "train_state.pt")


@dataclasses.dataclass
class Payload:
    """Not a tensor: loading it would execute code."""


def test_weights_of_a_wrong_file(results: Path, tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("no archive")
    torch.save(Payload(), tmp_path / "code.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "shape.pt")
    (tmp_path / "text.safetensors").write_text("no tensors")
    for name in ("text.pt", "code.pt", "list.pt", "shape.pt", "text.safetensors"):
        assert_refused(stage("sp", "--result_dir", tmp_path / "new", "--weights", tmp_path / name), name)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", STAGES)
def test_result_folders_that_cannot_be_written(name: str, results: Path, tmp_path: Path) -> None:
    parent = {"sp": (), "prune": ("sp",), "rl": ("prune",)}[name]
    checkpoint = [part for stage in parent for part in ("--checkpoint_file", folder_of(results, stage))]
    (tmp_path / "file").write_text("in the way")
    assert_refused(stage(name, *checkpoint, "--result_dir", tmp_path / "file"), "--result_dir", "file")
    if os.geteuid() != 0:  # root may write anywhere
        (tmp_path / "locked").mkdir(mode=0o500)
        assert_refused(stage(name, *checkpoint, "--result_dir", tmp_path / "locked"), "--result_dir", "locked")


@pytest.mark.parametrize("name", STAGES)
def test_a_loss_that_is_not_finite(name: str, results: Path) -> None:
    options = ("--lr", "1e25", "--exp_name", "diverging", "--epochs_start" if name == "prune" else "--epochs", 1)
    failed = stage(name, "--result_dir", results, *options)
    assert failed.returncode == 1
    assert "Traceback" not in failed.stderr
    assert failed.stderr.splitlines()[-1].startswith("failed: the loss is not finite")
    assert sum(line.startswith(("failed:", "error:")) for line in failed.stderr.splitlines()) == 1
    assert "--lr" in failed.stderr.splitlines()[-1]
    assert not (folder_of(results, name, "diverging") / "result.json").exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), ("RUN",)),
        (("nowhere",), ("nowhere",)),
        (("RUN", "--mode", "fast"), ("--mode", "fast")),
        (("RUN", "--batch_size", "0"), ("--batch_size",)),
        (("RUN", "--batch_size", "many"), ("--batch_size", "many")),
        (("RUN", "--device", "nonsense"), ("--device", "nonsense")),
        (("RUN", "--plit", "test"), ("--plit",)),
        (("nowhere/model.safetensors",), ("nowhere",)),
    ],
)
def test_evaluate(args: tuple[str, ...], words: tuple[str, ...], finished: Path) -> None:
    run = str(folder_of(finished, "sp"))
    assert_refused(run_here("hybridprune.evaluate", *(run if arg == "RUN" else arg for arg in args)), *words)


def test_a_run_that_is_not_there_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        hybridprune.load(tmp_path / "nowhere")


@pytest.mark.full
@pytest.mark.parametrize("name", STAGES)
def test_the_real_commands_end_with_the_same_line(name: str, tmp_path: Path) -> None:
    (tmp_path / "results").write_text("in the way")
    args = (*DIGITS, *OWN[name], "--result_dir", tmp_path / "results", "--device", "nonsense")
    refused = run_forked(SCRIPTS[name], *args, cwd=tmp_path)
    assert_refused(Result(refused.returncode, refused.stdout, refused.stderr), "--device", "nonsense")
