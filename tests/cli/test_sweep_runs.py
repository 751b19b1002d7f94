"""``python -m hybridprune.sweep_runs``: tiny grids, in real processes."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hybridprune.commands.grid import LOCK
from hybridprune.report import collect
from hybridprune.store.lock import exclusive
from tests import ROOT
from tests.cli.tiny_runs import Result, contents, folder_of, run_here, stage
from tests.processes import run_cli, run_forked, start_cli

COMMON = {
    "dataset": "digits", "resize": 8, "depth": 8, "width": 4, "bs": 20, "max_train_samples": 200, "num_workers": 0,
    "device": "cpu",
}  # fmt: skip
PRUNE = {
    "config_path": str(ROOT / "config.json"), "target_flops": 0.6, "curvature_images": 64, "moment_images": 64,
    "epochs_start": 1, "epochs_end": 1,
}  # fmt: skip


def grid(folder: Path, **changes: Any) -> Path:
    path = folder / "grid.json"
    path.write_text(json.dumps({"result_dir": "swept", "common": COMMON, **changes}))
    return path


def sweep(path: Path, *flags: str) -> Result:
    return run_here("hybridprune.sweep_runs", path, *flags)


def test_a_dry_run_prints_what_the_shell_could_run_and_makes_nothing(tmp_path: Path) -> None:
    path = grid(tmp_path, seeds=[0, 1], sp={"epochs": 1}, prune=PRUNE | {"exclude": "gate.*"}, rl={"alpha": [0.1, 1]})
    done = sweep(path, "--dry-run")
    assert done.returncode == 0 and done.stderr == "8 runs: 0 finished, 8 to do\n"
    assert sorted(item.name for item in tmp_path.iterdir()) == ["grid.json"]
    lines = done.stdout.splitlines()
    assert len(lines) == 8 and all(" -m hybridprune " in line for line in lines)
    # The shell puts the parent's folder in the place of the pattern, and leaves other patterns alone.
    parent = tmp_path / "swept" / "default" / "digits-resnet8-w4-sp-seed1"
    parent.mkdir(parents=True)
    (line,) = [line for line in lines if " hybridprune prune " in line and "--seed 1" in line]
    words = subprocess.run(
        ["sh", "-c", f"printf '%s\\n' {line}"], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    shown = words.stdout.splitlines()
    assert tmp_path / shown[shown.index("--checkpoint_file") + 1] == parent
    assert shown[shown.index("--exclude") + 1] == "gate.*"


def test_the_example_is_a_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    done = sweep(ROOT / "examples" / "grid.json", "--dry-run")
    assert done.returncode == 0 and done.stderr.startswith("21 runs: ")  # 3 seeds x (1 + 2 + 2 x 2)


def test_torchrun_starts_runs_of_several_processes(tmp_path: Path) -> None:
    done = sweep(grid(tmp_path, sp={"epochs": 1}), "--dry-run", "--nproc_per_run", "4")
    assert "-m torch.distributed.run --standalone --nproc-per-node=4 -m hybridprune train " in done.stdout


def test_finished_runs_are_left_alone_and_unfinished_ones_named(tmp_path: Path) -> None:
    flags = ("--result_dir", "swept", "--seed", "0", "--num_workers", "0", "--epochs", "2", "--lr", "0.05")
    assert stage("sp", *flags).returncode == 0
    path = grid(tmp_path, seeds=[0, 1], sp={"epochs": 2, "lr": 0.05})
    begun = folder_of(tmp_path / "swept", "sp", seed=1)
    begun.mkdir()
    done = sweep(path, "--dry-run")
    assert done.stderr.splitlines() == [
        "2 runs: 1 finished, 1 to do",
        f"unfinished, will be resumed: {begun.relative_to(tmp_path)}",
    ]
    assert done.stdout.count("\n") == 1 and "--seed 1" in done.stdout and "--resume" in done.stdout
    shutil.rmtree(begun)
    before = contents(tmp_path / "swept")
    assert sweep(grid(tmp_path, sp={"epochs": 2, "lr": 0.05})).returncode == 0
    assert contents(tmp_path / "swept") == before
    # A run that was made otherwise is not taken for the grid's.
    for flags in ((), ("--dry-run",)):
        changed = sweep(grid(tmp_path, sp={"epochs": 3, "lr": 0.05}), *flags)
        assert changed.returncode == 2 and "epochs = 2, the grid has 3" in changed.stderr
    assert contents(tmp_path / "swept") == before


def test_a_child_of_another_run_is_refused(results: Path, tmp_path: Path) -> None:
    sp, prune = (json.loads((folder_of(results, s) / "config.json").read_text()) for s in ("sp", "prune"))
    own = ("seed", "exp_name", "result_dir", "checkpoint_file", "exclude", "classes")
    sections = [{key: value for key, value in config.items() if key not in own} for config in (sp, prune)]
    (tmp_path / "config.json").write_text("{}")
    path = tmp_path / "grid.json"
    path.write_text(json.dumps({"result_dir": "results", "sp": sections[0], "prune": sections[1]}))
    assert sweep(path, "--dry-run").returncode == 0
    spec = folder_of(results, "sp") / "spec.json"
    spec.write_text(json.dumps(json.loads(spec.read_text()) | {"run_id": "another"}))
    done = sweep(path, "--dry-run")
    assert done.returncode == 2 and "was made from another run than default sp seed 0" in done.stderr


@pytest.mark.parametrize(
    ("changes", "flags", "words"),
    [
        ({"sp": {"epochz": 1}}, (), ("GRID", "sp", "--epochz", "did you mean --epochs")),
        ({"sp": {"momentum": 2}}, (), ("--momentum 2",)),
        ({"prune": {"config_path": "none.json"}}, (), ("none.json",)),
        ({"sp": {}}, ("--jobs", "0"), ("--jobs 0",)),
        ({"sp": {}}, ("--nproc_per_run", "0"), ("--nproc_per_run 0",)),
        ({"sp": {}}, ("--engine", "ray", "--devices", "cuda:0"), ("--devices", "--gpus_per_run")),
        ({"sp": {}}, ("--what",), ("--what", "--help")),
        ({}, (), ("none of the stages",)),
    ],
)
def test_mistakes(changes: dict[str, Any], flags: tuple[str, ...], words: tuple[str, ...], tmp_path: Path) -> None:
    done = sweep(grid(tmp_path, **changes), *flags)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert sorted(item.name for item in tmp_path.iterdir()) == ["grid.json"]


def test_without_ray_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ray", "ray.tune"):
        monkeypatch.setitem(sys.modules, name, None)
    done = sweep(grid(tmp_path, sp={"epochs": 1}), "--engine", "ray")
    assert done.returncode == 2 and "hybridprune[sweep]" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr and not (tmp_path / "swept").exists()


def test_a_second_sweep_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    path = grid(tmp_path, sp={"epochs": 1})
    with exclusive(tmp_path / "swept", "busy", LOCK):
        done = sweep(path)
        assert done.returncode == 2 and done.stderr.startswith("error: result_dir swept: another sweep")
        assert done.stderr.count("\n") == 1 and done.stdout == ""
        assert sweep(path, "--dry-run").returncode == 0  # starts nothing, so it may look
        assert [item.name for item in (tmp_path / "swept").iterdir()] == [".sweep.lock"]


@pytest.mark.exhaustive
@pytest.mark.full
def test_a_sweep_ends_in_means_over_seeds_whatever_fails_or_interrupts_it(tmp_path: Path) -> None:
    path = grid(
        tmp_path, seeds=[0, 1], sp={"epochs": 2, "lr": 0.05}, prune=PRUNE, rl={"epochs": 1, "lr": [0.001, 1e30]}
    )
    command = ("hybridprune.sweep_runs", path, "--jobs", "2")
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    interrupted = start_cli(*command, cwd=tmp_path, env=environment)
    begun = folder_of(tmp_path / "swept", "sp")
    while not (begun / "metrics.jsonl").is_file() and interrupted.poll() is None:
        time.sleep(0.01)
    os.kill(interrupted.pid, signal.SIGTERM)
    _, said = interrupted.communicate(timeout=120)
    assert interrupted.returncode == 143 and "give the same command to go on" in said

    done = run_forked(*command, cwd=tmp_path, env=environment)
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1].startswith("failed: 2 of 8 runs: rl.lr=1e+30 rl seed 0, rl.lr=1e+30 rl seed 1;")
    assert done.stderr.count("the loss is not finite") == 2
    rows = collect(tmp_path / "swept")
    assert [(row.name, row.experiment, row.seeds) for row in rows] == [
        ("without pruning", "default", (0, 1)),
        ("static only", "default", (0, 1)),
        ("static + dynamic", "rl.lr=0.001", (0, 1)),
    ]
    assert rows[1].stats["accuracy"].std is not None
    assert [key[0] for key in rows[2].lineage] == ["sp", "prune", "rl"]
    # What an undisturbed command makes is the same to the last bit.
    alone = tmp_path / "alone"
    flags = [str(word) for key, value in COMMON.items() for word in (f"--{key}", value)]
    made = run_forked("main_sp.py", *flags, "--epochs", "2", "--lr", "0.05", "--result_dir", alone, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    weights = [(folder_of(folder, "sp") / "model.safetensors").read_bytes() for folder in (alone, tmp_path / "swept")]
    assert weights[0] == weights[1]


@pytest.mark.full
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="the extra `sweep` is not installed")
def test_ray_runs_the_same_grid(tmp_path: Path) -> None:
    path = grid(tmp_path, sp={"epochs": 1, "lr": [0.05, 1e30]}, rl={"epochs": 1})
    home = {"HOME": str(tmp_path / "home")}  # Ray leaves its files in the user's home
    (tmp_path / "home").mkdir()
    done = run_cli("hybridprune.sweep_runs", path, "--engine", "ray", cwd=tmp_path, env=home)
    assert done.returncode == 1, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("failed: 1 of 4 runs: sp.lr=1e+30 sp seed 0; 1 that start from them were not started")
    assert [row.name for row in collect(tmp_path / "swept")] == ["without pruning", "dynamic only"]
