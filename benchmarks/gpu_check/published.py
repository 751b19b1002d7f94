"""The first epochs of the published table: the first command of ``benchmarks/reproduce_published.sh``."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from benchmarks.gpu_check.check import Check, Found, Setting
from benchmarks.gpu_check.command import run_for

SCRIPT = Path(__file__).resolve().parent.parent / "reproduce_published.sh"


def first_epochs(setting: Setting) -> Found:
    """Accuracy and speed of the epochs that the time was enough for."""
    dataset = os.environ.get("DATASET", "cifar100")
    if dataset.startswith("cifar") and (setting.data_dir is None or not Path(setting.data_dir).is_dir()):
        return Found(note="left out: no --data_dir with CIFAR-100")
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "PYTHON": sys.executable, "RESULTS": folder, "DATA_DIR": setting.data_dir or "", "SEEDS": "0", "GPUS": "1",
            "DEVICE": str(setting.device), "DRY_RUN": "1",
        }  # fmt: skip
        plan = subprocess.run([str(SCRIPT)], env={**os.environ, **settings}, capture_output=True, text=True, check=True)
        command = shlex.split(next(line for line in plan.stdout.splitlines() if " train " in line))
        done = run_for(command, setting.seconds, signal.SIGINT)  # which makes it save its state
        lines = [json.loads(line) for path in Path(folder).rglob("metrics.jsonl") for line in path.open()]
    if len(lines) < 2:
        last = next(iter(done.complained.strip().splitlines()[-1:]), "")
        raise RuntimeError(last if done.ended else f"no epoch was done in {setting.seconds:.0f} s")
    last = lines[-1]
    images = 45_000 if dataset == "cifar100" else None
    return Found(
        images_per_second=None if images is None else images * last["epoch"] / last["seconds"],
        note=f"{last['epoch']} epochs, validation accuracy {last['validation_accuracy']:.4f}",
    )


CHECKS: Mapping[str, Check] = {
    "the published row's first epochs": Check(first_epochs, seconds=600, alone=True, least=60),
}
