"""``benchmarks/reproduce_published.sh``: what it would run as it is, and a whole small run through the environment."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from hybridprune.config import PruneConfig, RlConfig, SpConfig, resolve
from hybridprune.measure.cost import count
from hybridprune.models.spec import NetworkSpec
from hybridprune.report import collect
from tests import ROOT

SCRIPT = ROOT / "benchmarks" / "reproduce_published.sh"
CONFIGS = {"train": SpConfig(), "prune": PruneConfig(), "route": RlConfig()}
SMALL = {
    "DATASET": "digits", "RESIZE": "8", "DEPTH": "8", "WIDTH": "4", "SEEDS": "0", "EPOCHS_SP": "2",
    "EPOCHS_PRUNE": "1", "EPOCHS_RL": "1", "STATIC_FLOPS": "0.7", "DYNAMIC_FLOPS": "0.65", "PRECISION": "fp32",
    "DEVICE": "cpu", "GPUS": "1",
}  # fmt: skip


def run(folder: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(folder / ".cache"),
        **settings,
    }  # fmt: skip
    return subprocess.run([str(SCRIPT)], cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """The commands of the script as it is, on four GPUs."""
    done = run(tmp_path_factory.mktemp("published"), DRY_RUN="1", GPUS="4", RESULTS="my results")
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


@pytest.mark.full
def test_three_seeds_of_all_stages_are_started_by_torchrun(published: list[list[str]]) -> None:
    stages = [words[words.index("hybridprune") + 1] for words in published]
    assert sorted(stages) == sorted([*CONFIGS] * 3)
    assert {words[words.index("--seed") + 1] for words in published} == {"0", "1", "2"}
    assert all("--nproc-per-node=4" in words and "--resume" in words for words in published)


def test_the_settings_are_the_published_ones(published: list[list[str]]) -> None:
    for words in published:
        stage, *flags = words[words.index("hybridprune") + 1 :]
        config = resolve(CONFIGS[stage], flags, prog="", description="").config
        assert (config.network.depth, config.network.width, config.data.dataset) == (32, 64, "cifar100")
        assert config.run.result_dir == "my results"
        if isinstance(config, SpConfig):
            assert (config.stage.epochs, config.optim.lr, config.data.batch_size) == (200, 0.1, 128)
        elif isinstance(config, PruneConfig):
            assert (config.cut.target_flops, config.stage.epochs_start, config.stage.epochs_end) == (0.51e9, 30, 60)
            assert config.optim.lr == 0.02  # of config.json
        else:
            assert (config.stage.epochs, config.optim.lr, config.stage.target_flops) == (100, 0.001, 0.4e9)


def test_the_cost_stated_follows_from_the_flops(published: list[list[str]]) -> None:
    text = SCRIPT.read_text()
    dense = 2 * count(NetworkSpec("resnet", 32, 64, 100).build(), 32).backbone_macs / 1e9
    terms = re.findall(r"stage \d: +(\d+) epochs x 45,000 x (\d) x ([\d.]+) GFLOPs.*? ([\d.]+) PFLOP", text)
    assert [(epochs, passes) for epochs, passes, *_ in terms] == [("200", "3"), ("60", "3"), ("100", "5")]
    assert float(terms[0][2]) == pytest.approx(dense, abs=5e-5) and {terms[1][2], terms[2][2]} == {"0.51"}
    stated = [float(total) for *_, total in terms]
    for (epochs, passes, flops, _), total in zip(terms, stated, strict=True):
        assert total == pytest.approx(int(epochs) * 45_000 * int(passes) * float(flops) / 1e6, abs=0.06)
    (seeds,) = re.findall(r"three seeds: +(\d+) PFLOP", text)
    assert int(seeds) == pytest.approx(3 * sum(stated), abs=0.6)
    found = re.findall(r"(\d+) TFLOP/s.*?([\d.]+)(?: GPU hours|;)", text)
    assert len(found) == 2
    for speed, hours in found:
        assert float(hours) == pytest.approx(int(seeds) * 1e15 / (int(speed) * 1e12) / 3600, rel=0.02)


@pytest.mark.exhaustive
@pytest.mark.full
def test_a_shortened_run_ends_in_the_table_and_is_resumed(tmp_path: Path) -> None:
    done = run(tmp_path, **SMALL)
    assert done.returncode == 0, done.stderr
    results = tmp_path / "results" / "published"
    rows = collect(results)
    assert [(row.name, row.seeds) for row in rows] == [
        ("without pruning", (0,)),
        ("static only", (0,)),
        ("static + dynamic", (0,)),
    ]
    assert rows[1].stats["dense_share"].mean <= 0.7
    assert done.stdout == (results / "report.md").read_text() and "static + dynamic" in done.stdout
    assert "without pruning" in (results / "report.html").read_text()
    # One run is lost; the same command makes it again, and only it.
    (lost,) = (results / "default").glob("*-rl-seed0")
    kept = {path: path.stat().st_mtime_ns for path in results.rglob("model.safetensors") if lost not in path.parents}
    (lost / "result.json").unlink()
    again = run(tmp_path, **{**SMALL, "GPUS": "2"})  # with another number of processes, which are torchrun's
    assert again.returncode == 0 and "3 runs: 2 finished, 1 to do" in again.stderr, again.stderr
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    record = json.loads((lost / "result.json").read_text())
    assert (record["seed"], record["processes"]) == (0, 2)
    # Other settings do not mix with these runs.
    other = run(tmp_path, **{**SMALL, "EPOCHS_SP": "3"})
    assert other.returncode == 2 and "epochs = 2, the grid has 3" in other.stderr
