"""``benchmarks/gpu_check.sh``, rehearsed where there is no GPU: on the CPU, and on tensors that claim to be on one."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu_check import CHECKS, __main__, cases
from benchmarks.gpu_check.check import Found, Setting, compared
from benchmarks.gpu_check.worker import Worker, run
from tests import ROOT
from tests.devices.claimed import claimed_cuda

SCRIPT = ROOT / "benchmarks" / "gpu_check.sh"
REHEARSED = (
    "step: fp32", "step: fp16*channels_last", "measuring: recalibration", "a group of one process",
    "images/s: stage 3, counterfactual, width 16, bf16", "images/s: factors, width 16", "the published row*",
)  # fmt: skip
SMALL = {
    "DATASET": "digits", "RESIZE": "8", "DEPTH": "8", "WIDTH": "4", "PRECISION": "fp32", "EPOCHS_SP": "2",
    "OMP_NUM_THREADS": "1", "PYTHON": sys.executable,
}  # fmt: skip


@pytest.mark.exhaustive
@pytest.mark.full
def test_a_rehearsal_fills_the_table_and_the_file(tmp_path: Path) -> None:
    output = tmp_path / "found.json"
    command = [SCRIPT, "--device", "cpu", "--minutes", "10", "--workers", "1", "--output", output, "--only", *REHEARSED]
    environment = {**os.environ, **SMALL, "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(list(map(str, command)), env=environment, cwd=tmp_path, capture_output=True, text=True)
    record = json.loads(output.read_text())
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert record["complete"] and record["hardware"]["device"] == "cpu" and record["seconds"] < 600
    rows = {row["check"]: row for row in record["rows"]}
    assert len(rows) == len(REHEARSED) and {row["status"] for row in rows.values()} == {"ok"}
    lines = done.stdout.splitlines()
    assert len(lines) == 2 + len(rows) and all(line.count(" | ") == 6 for line in lines)
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines[2:]] == list(rows)
    assert all(row["images_per_second"] > 0 for name, row in rows.items() if name.startswith("images/s"))
    assert "2 epochs, validation accuracy" in rows["the published row's first epochs"]["note"]
    assert 0 < rows["step: fp32"]["difference"] <= rows["step: fp32"]["tolerance"]  # other kernels than the reference
    assert rows["a group of one process"]["note"] == "gloo"


@pytest.mark.parametrize(
    "name",
    [
        "step: fp32", "step: TF32", "step: bf16, channels_last", "step: fp16 with a scaler, contiguous",
        "measuring: recalibration", "images/s: stage 1, width 16, TF32", "images/s: traces, width 16",
    ],
)  # fmt: skip
def test_a_check_runs_where_a_gpu_is_claimed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 << 29)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    with claimed_cuda() as device:
        row = run(name, Setting(device, 60.0, quick=True))
    assert row["status"] == "ok", row
    if name.startswith("images/s"):
        assert row["images_per_second"] > 0 and row["note"] == "1.50 GiB"


def ask(*requests: tuple[str, float]) -> list[dict[str, Any]]:
    """One after the other, of one worker."""

    async def all_of_them() -> list[dict[str, Any]]:
        worker = Worker("cpu", 1, "tests.benchmarks.broken_checks")
        try:
            return [await worker.ask(name, seconds, True, "data") for name, seconds in requests]
        finally:
            await worker.end()

    return asyncio.run(all_of_them())


@pytest.mark.exhaustive
@pytest.mark.full
def test_whatever_a_check_does_is_a_row_and_the_next_one_runs() -> None:
    names = "fails", "dies", "speaks", "sleeps", "speaks"
    fails, dies, speaks, sleeps, again = ask(*((name, 1.0 if name == "sleeps" else 30.0) for name in names))
    assert fails["status"] == "error" and fails["note"].startswith("ValueError: first line (broken_checks.py:")
    assert (dies["status"], dies["note"]) == ("error", "the process died")
    assert (sleeps["status"], sleeps["note"]) == ("timeout", "killed after 1 s")
    for row in (speaks, again):
        assert (row["status"], row["difference"], row["tolerance"]) == ("differs", 0.5, 0.25)
        assert row["note"] == "True, data"


def test_without_time_everything_is_skipped_and_said_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "found.json"
    assert __main__.main(["--device", "cpu", "--minutes", "0", "--output", str(output)]) == 0
    record = json.loads(output.read_text())
    assert {row["status"] for row in record["rows"]} == {"skipped"} and record["complete"]
    assert sorted(row["check"] for row in record["rows"]) == sorted(CHECKS)
    assert f"{len(CHECKS)} skipped" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for argv, said in (
        (["--output", str(tmp_path / "x")], "finds no GPU"),
        (["--only", "nothing"], "no check is called"),
    ):
        with pytest.raises(SystemExit) as ended:
            __main__.main(argv)
        assert ended.value.code == 2 and said in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "x").exists()


def test_differences_are_relative_and_no_nan_is_close_to_a_number() -> None:
    here = {"a": torch.tensor([30.0, 40.0]), "b": 2.0}
    found = compared({"a": torch.tensor([33.0, 44.0]), "b": 2.0}, here, 0.11)
    assert (found.difference, found.status, found.note) == (pytest.approx(0.1), "ok", "at a")
    assert compared({"a": torch.tensor([33.0, 44.0]), "b": 2.0}, here, 0.09).status == "differs"
    assert compared({"a": torch.tensor([float("nan"), 40.0]), "b": 2.0}, here, 0.1).status == "differs"
    assert Found(difference=float("nan"), tolerance=1.0).status == "differs"
    for wrong in ({"a": here["a"]}, {"a": torch.ones(3), "b": 2.0}):
        with pytest.raises(AssertionError):
            compared(wrong, here, 0.1)


def test_every_case_of_the_package_is_a_check() -> None:
    assert set(cases.CASES) <= set(CHECKS)
    assert cases.tolerance("training: sp, bf16") == 3 * cases.tolerance("training: sp, hard gates")
