"""``benchmarks/reproduce_published.sh --fast``: its settings, the work that it states, and whole small rows."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from benchmarks import fast_row
from benchmarks.fast_row import Settings, training_flops
from hybridprune.config import PruneConfig, RlConfig, SpConfig, resolve
from hybridprune.errors import RunFailed, UserError
from hybridprune.grid.grid import Run
from hybridprune.grid.state import command, find
from hybridprune.grid.work import Outcome
from hybridprune.measure.cost import count
from hybridprune.models.spec import NetworkSpec
from tests import ROOT
from tests.cli.tiny_runs import SCRIPTS, run_here

SMALL = {
    "RESULTS": "row", "DATASET": "digits", "RESIZE": "8", "SMALL_DEPTH": "8", "DEPTH": "14", "WIDTH": "4",
    "BATCH": "128", "COMPILE": "0", "EPOCHS_SP": "1", "EPOCHS_PRUNE": "1", "STATIC_FLOPS": "0.7", "SMALL_FLOPS": "0.6",
    "DYNAMIC_FLOPS": "0.65", "PRECISION": "fp32", "DEVICE": "cpu",
}  # fmt: skip
RUNS = ["small sp", "small prune", "default sp", "default prune", "default rl"]


def script(folder: Path, *flags: str, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **settings}
    words = [str(ROOT / "benchmarks" / "reproduce_published.sh"), *flags]
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_settings_are_those_of_the_head() -> None:
    networks = Settings({}).networks(3)
    sp, cut = [], []
    for run in networks:
        defaults = {"sp": SpConfig(), "prune": PruneConfig()}[run.stage]
        config = resolve(defaults, run.arguments, prog="", description="").config
        assert config.network.width == 64 and config.network.gate == "none" and config.run.seed == 3
        assert config.optim.precision == "bf16" and config.optim.channels_last and config.data.dataset == "cifar100"
        if isinstance(config, SpConfig):
            assert (config.data.batch_size, config.stage.epochs, config.loss.label_smoothing) == (512, 40, 0.1)
            assert (
                config.optim.scheduler_id == "cosine"
                and config.averaging.ema_decay > 0
                and config.compiler.compile == "on"
            )
            assert config.stage.rate_penalty == 0
            sp.append(config.network.depth)
        else:
            assert isinstance(config, PruneConfig)
            assert (config.stage.epochs_start, config.stage.epochs_end, config.stage.kd_weight) == (8, 8, 0.7)
            assert config.compiler.compile == "off"
            cut.append((config.network.depth, config.cut.target_flops))
    assert sp == [20, 32] and cut == [(20, 0.25e9), (32, 0.51e9)]
    joined = Settings({}).cascade(networks)
    config = resolve(RlConfig(), joined.arguments, prog="", description="").config
    assert (config.cascade.routing, len(config.cascade.members), config.stage.target_flops) == ("cascade", 2, 0.4e9)


def test_the_work_and_the_speed_stated_follow_from_the_flops() -> None:
    text = fast_row.__doc__ or ""
    dense = {d: 2 * count(NetworkSpec("resnet", d, 64, 100, gate="none").build(), 32).backbone_macs for d in (32, 20)}
    lines = re.findall(
        r"stage (\d), ResNet-(\d+)(?: to ([\d.]+))?: +(\d+) epochs x 45,000 x (.*?)GFLOPs +(\S+) PFLOP", text
    )
    assert [line[:2] for line in lines] == [("1", "32"), ("1", "20"), ("2", "32"), ("2", "20")]
    total = 0.0
    for stage, depth, target, epochs, formula, stated in lines:
        full = dense[int(depth)]
        own = full if stage == "1" else float(target) * 1e9
        work = training_flops({"1": "sp", "2": "prune"}[stage], int(epochs), 45_000, own, full)
        assert float(stated) == pytest.approx(work / 1e15, abs=0.06)
        assert f"{full / 1e9:.4f}" in formula and epochs == {"1": "40", "2": "8"}[stage]
        total += work
    (bf16,) = re.findall(r"all steps, bf16: +([\d.]+) PFLOP", text)
    assert float(bf16) == pytest.approx(total / 1e15, abs=0.06)
    # Validation before the first epoch and twice after each; at the end two readings of it and of the test images.
    passes = sum((81 * 5_000 + 2 * 15_000) * dense[d] for d in dense) + (17 * 5_000 + 2 * 15_000) * 0.76e9
    (fp32,) = re.findall(r"at the end, fp32: +([\d.]+) PFLOP", text)
    assert float(fp32) == pytest.approx(passes / 1e15, abs=0.06)
    (figures,) = re.findall(r"The steps have ([\d.]+) minutes: (\d+) TFLOP/s, ([\d.]+) % .* takes ([\d.]+)\.", text)
    left, needed, share, whole = map(float, figures)
    slow = float(fp32) * 1e15 / 10e12 / 60
    assert left == pytest.approx(15 - 4 - slow, abs=0.06)
    assert needed == pytest.approx(total / (60 * left) / 1e12, abs=0.6)
    assert share == pytest.approx(100 * needed / 989, abs=0.06)
    assert whole == pytest.approx(4 + slow + total / 100e12 / 60, abs=0.06)
    head = (ROOT / "benchmarks" / "reproduce_published.sh").read_text()
    assert f"({round(float(bf16))} PFLOP a seed" in head and f"({needed:.0f} TFLOP/s)" in head


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("MINUTES", "soon", "MINUTES=soon: must be a number"),
        ("STATIC_FLOPS", "-1", "STATIC_FLOPS=-1: must be"),
        ("BATCH", "inf", "BATCH=inf: must be"),
        ("SEEDS", "0;1", "SEEDS=0;1: must be whole numbers"),
    ],
)
def test_a_value_that_is_none_is_refused(
    name: str, value: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"^{re.escape(words)}"):
        fast_row.main()


def test_another_flag_is_refused(tmp_path: Path) -> None:
    done = script(tmp_path, "--quick")
    assert done.returncode == 2 and done.stderr == "error: --quick: unknown; the one flag is --fast\n"


@pytest.mark.full
def test_the_script_stops_at_its_limit(tmp_path: Path) -> None:
    """Which is over at once, so no run starts."""
    done = script(tmp_path, "--fast", **SMALL, MINUTES="0")
    assert done.returncode == 1 and "MINUTES=0 is reached; give the same command to go on" in done.stderr
    assert done.stdout.count("not finished") == len(RUNS) and not list(tmp_path.rglob("spec.json"))


def test_a_dry_run_prints_the_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in {**SMALL, "DRY_RUN": "1"}.items():
        monkeypatch.setenv(name, value)
    fast_row.main()
    plan = capsys.readouterr().out.splitlines()
    assert [line.split(" -m hybridprune ")[1].split()[0] for line in plan] == ["train", "prune"] * 2 + ["route"]
    assert not list(tmp_path.iterdir())


Start = Callable[[int], None]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """The command, whose runs are made in this process; the time is over after so many of them."""
    monkeypatch.chdir(tmp_path)
    for name, value in {**SMALL, "XDG_CACHE_HOME": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    left, over = [0], list[Callable[[], None]]()

    class Timer:
        def __init__(self, seconds: float, stop: Callable[[], None]) -> None:
            assert seconds == 15 * 60
            over.append(stop)

        def start(self) -> None: ...

        def cancel(self) -> None: ...

    def in_turn(todo: Sequence[Run], worker: object, tell: Callable[[Outcome], None], *, jobs: int) -> None:
        for run in todo:
            if run.parent is not None and not find(run.parent).finished:
                continue
            if left[0] == 0:
                over[-1]()
                tell(Outcome(run, "not started", 0.0))
                continue
            left[0] -= 1
            done = run_here(SCRIPTS[run.stage], *command(run)[4:])
            tell(Outcome(run, "" if done.returncode == 0 else done.stderr, 90.0))

    monkeypatch.setattr(fast_row.threading, "Timer", Timer)
    monkeypatch.setattr(fast_row, "run_processes", in_turn)

    def started(runs: int) -> None:
        left[0] = runs
        fast_row.main()

    return started


@pytest.mark.full
def test_a_row_that_the_limit_cuts_goes_on_and_ends_in_both_tables(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RunFailed, match="MINUTES=15 is reached"):
        start(3)
    partial = capsys.readouterr().out
    assert "| without pruning (small) |" in partial and "static + dynamic" not in partial
    assert re.findall(r"^\| (.*?) seed 0 \| 0.0 \| not finished", partial, re.MULTILINE) == RUNS[3:]
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("model.safetensors")}
    start(2)
    whole = capsys.readouterr().out
    assert "| static + dynamic |" in whole and "not finished" not in whole
    assert re.findall(r"^\| (.*?) seed 0 \| 1.5 \|", whole, re.MULTILINE) == RUNS
    assert len(kept) == 3 and {path: path.stat().st_mtime_ns for path in kept} == kept
    (cascade,) = tmp_path.glob("row/default/*-rl-seed0/result.json")
    record = json.loads(cascade.read_text())
    assert [Path(member["path"]).name for member in record["members"]] == [
        f"digits-resnet{depth}-w4-none-prune-seed0" for depth in (8, 14)
    ]
    start(0)  # nothing is left to do
    assert capsys.readouterr().out == whole
    (large,) = tmp_path.glob("row/default/*-prune-seed0/result.json")
    stored = json.loads(large.read_text())
    work = training_flops("prune", 1, 1295, 2 * stored["macs"]["backbone"], 2 * stored["dense"]["macs"])
    assert f"{work / 1e15:.4g}" in whole
