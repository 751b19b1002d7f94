"""Tiny runs of the commands, in this process or in one of their own."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
from collections.abc import Callable
from pathlib import Path

from hybridprune.commands import bench, evaluate, export, recommend, reconfigure, threshold_sweep
from hybridprune.commands import grid as sweep_runs
from hybridprune.errors import run_command
from hybridprune.report import command as report
from hybridprune.stages import prune, rl_prune, sp
from tests import ROOT

STAGES = ("sp", "prune", "rl")
SCRIPTS = {"sp": "main_sp.py", "prune": "main_prune.py", "rl": "main_rl_prune.py"}
COMMANDS: dict[str, Callable[[list[str]], object]] = {
    "main_sp.py": sp.main,
    "main_prune.py": prune.main,
    "main_rl_prune.py": rl_prune.main,
    "hybridprune.bench": bench.main,
    "hybridprune.evaluate": evaluate.main,
    "hybridprune.export": export.main,
    "hybridprune.reconfigure": reconfigure.main,
    "hybridprune.report": report.main,
    "hybridprune.sweep": threshold_sweep.main,
    "hybridprune.sweep_runs": sweep_runs.main,
    "recommend": recommend.main,
}
NETWORK = ("--network", "resnet", "--depth", "8", "--width", "4")
TINY = (*NETWORK, "--bs", "20", "--num_workers", "0", "--device", "cpu")
DIGITS = (*TINY, "--dataset", "digits", "--resize", "8", "--max_train_samples", "200")
OWN = {
    "sp": ("--epochs", "2", "--lr", "0.05"),
    "prune": (
        *("--config_path", str(ROOT / "config.json"), "--target_flops", "0.6", "--curvature_images", "64"),
        *("--moment_images", "64", "--epochs_start", "2", "--epochs_end", "2"),
    ),
    "rl": (
        "--epochs",
        "2",
    ),
}
"""What a stage takes beside the data and the network."""


@dataclasses.dataclass(frozen=True)
class Result:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


def run_here(script: str, *args: object) -> Result:
    """What the script does, without the seconds that a new process takes to import everything."""

    returned: object = None

    def command() -> None:
        nonlocal returned
        returned = COMMANDS[script](list(map(str, args)))

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = run_command(command)
            if isinstance(returned, int):  # a main that has caught its errors itself
                code = returned
        except SystemExit as exit:  # --help
            code = int(exit.code or 0)
    return Result(code, out.getvalue(), err.getvalue())


def stage(name: str, *args: object, data: tuple[str, ...] = DIGITS) -> Result:
    """A tiny run of a stage."""
    return run_here(SCRIPTS[name], *data, *OWN[name], *args)


def folder_of(result_dir: Path, stage: str, exp_name: str = "default", dataset: str = "digits", seed: int = 0) -> Path:
    """Where a tiny run lies."""
    return result_dir / exp_name / f"{dataset}-resnet8-w4-{stage}-seed{seed}"


def contents(folder: Path) -> dict[str, tuple[int, str]]:
    """Time of change and digest of every file below a folder."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def weights(run: Path) -> dict[str, bytes]:
    """The selected and the last weights of a run, byte by byte."""
    return {name: (run / name).read_bytes() for name in ("model.safetensors", "last.safetensors")}


def assert_refused(result: Result, *words: str) -> None:
    """Exit code 2 and one line: what is wrong (``words``); beside it only the announcement of the parent run."""
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if not line.startswith(("parent run: ", "run folder: "))]
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    assert result.stderr.splitlines()[-1] == lines[0]
    assert result.stdout == ""
    for word in words:
        assert word in lines[0], lines[0]
