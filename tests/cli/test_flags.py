"""``--help``, ``--print-config`` and ``--dry-run``: everything is named, and nothing is written."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from hybridprune.config import PruneConfig, RlConfig, SpConfig
from tests import ROOT
from tests.cli.tiny_runs import COMMANDS, SCRIPTS, STAGES, contents, run_here, stage
from tests.processes import run_cli

CONFIGS = {"main_sp.py": SpConfig(), "main_prune.py": PruneConfig(), "main_rl_prune.py": RlConfig()}
PUBLISHED = {
    "main_sp.py": (
        "--network resnet --depth 32 --epochs 200 --lr 0.1 --bs 128 --num_workers 4 --momentum 0.9 "
        "--weight_decay 0.0005 --img_type png --resize 32 --result_dir results --data_dir data/cifar_100 "
        "--scheduler_id 1 --alpha 0.1"
    ),
    "main_prune.py": "--config_path config.json",
    "main_rl_prune.py": (
        "--network resnet --depth 32 --epochs 100 --lr 0.001 --bs 256 --num_workers 4 --img_type png --resize 32 "
        "--result_dir results --data_dir data/cifar_100 --alpha 0.1 --gamma 1.0 --rl_weight 0.1"
    ),
}
OWN_FLAGS = {
    "hybridprune.bench": "--data_dir --device --batch --threads --forms --int8 --rounds",
    "hybridprune.evaluate": (
        "--data_dir --batch_size --bs --device --mode --split --target_flops --compare --no-compare"
    ),
    "hybridprune.export": (
        "--data_dir --device --batch --bs --output --onnx --openvino --program --harden --never --always "
        "--unprofitable --keep_state"
    ),
    "recommend": "--target_flops --evaluate --network --data_dir --device --batch_size --bs",
    "hybridprune.reconfigure": "--output --data_dir --batch_size --bs --device",
    "hybridprune.report": "--format --output --plot --html --gallery --gallery_images --data_dir --device",
    "hybridprune.sweep": "--data_dir --batch_size --bs --device --points --split --output",
    "hybridprune.sweep_runs": (
        "--dry-run --dry_run --engine --jobs --devices --nproc_per_run --cpus_per_run --gpus_per_run"
    ),
}
"""What the commands take that are no stages."""


def flags_of(script: str) -> set[str]:
    if script in OWN_FLAGS:
        return set(OWN_FLAGS[script].split())
    flags = {"--config_path", "--resume", "--dry-run", "--print-config"}
    for concern in dataclasses.fields(CONFIGS[script]):
        for option in dataclasses.fields(getattr(CONFIGS[script], concern.name)):
            flags |= {f"--{flag}" for flag in option.metadata["flags"] or (option.name,)}
    return flags


def assert_helpful(script: str, text: str) -> None:
    words = text.replace(",", " ").replace("[", " ").replace("]", " ").split()
    assert flags_of(script) <= set(words), flags_of(script) - set(words)


@pytest.mark.parametrize("script", COMMANDS)
def test_help_lists_every_flag(script: str) -> None:
    shown = run_here(script, "--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert_helpful(script, shown.stdout)


@pytest.mark.full
@pytest.mark.parametrize(
    "script", sorted({*COMMANDS} - {*SCRIPTS.values(), "hybridprune.evaluate", "hybridprune.report", "recommend"})
)
def test_help_of_the_real_command(script: str, tmp_path: Path) -> None:
    """In a fresh interpreter; those left out are run by ``test_the_real_commands_in_sequence``."""
    shown = run_cli(script, "--help", cwd=tmp_path)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert_helpful(script, shown.stdout)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("script", SCRIPTS.values())
def test_published_flags_are_accepted(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    shown = run_here(script, *PUBLISHED[script].split(), "--print-config")
    assert (shown.returncode, shown.stderr) == (0, "")
    printed = json.loads(shown.stdout)
    assert printed["data_dir"] == "data/cifar_100" and printed["depth"] == 32
    if script == "main_prune.py":
        written = json.loads((ROOT / "config.json").read_text())
        compared = {key: value for key, value in written.items() if key != "scheduler_id"}
        assert {key: printed[key] for key in compared} == compared
        assert printed["scheduler_id"] == "up-down"


def test_pruning_reads_config_json_in_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"width": 24}')
    assert json.loads(run_here("main_prune.py", "--print-config").stdout)["width"] == 24


@pytest.mark.parametrize("name", STAGES)
def test_dry_run_writes_nothing(name: str, finished: Path, tmp_path: Path) -> None:
    before = contents(finished)
    shown = stage(name, "--result_dir", finished, "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert f"stage {name}: resnet-8, width 4, gate rnn, 10 classes" in shown.stdout
    assert "200 training" in shown.stdout
    assert contents(finished) == before
    assert list(tmp_path.rglob("*")) == []


def test_dry_run_says_that_the_network_will_have_been_trained(finished: Path) -> None:
    for method, first in (("slimming", True), ("ucs", False)):
        shown = stage("prune", "--result_dir", finished, "--dry-run", "--method", method).stdout
        assert "plan of the first iteration" in shown and ("trains it towards sparsity first" in shown) == first


def test_dry_run_of_pruning_shows_every_layers_ranks(finished: Path) -> None:
    shown = stage("prune", "--result_dir", finished, "--dry-run").stdout.splitlines()
    ranks = [line.strip() for line in shown if "input rank" in line or line.endswith(" components")]
    assert len(ranks) == 10  # stem, 3 x 2, 2 projections and the classifier
    assert any(line.endswith(" components") for line in ranks)
    edits = json.loads((finished / "default/digits-resnet8-w4-prune-seed0/spec.json").read_text())["network"]["edits"]
    planned = [line for line in ranks if not line.endswith("input rank full, output rank full")]
    assert planned == [
        f"{edit['layer']}: {edit['rank_in']} components"
        if edit.get("separable")
        else f"{edit['layer']}: input rank {edit['rank_in'] or 'full'}, output rank {edit['rank_out'] or 'full'}"
        for edit in edits
    ]
