"""A run says what it was computed in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hybridprune.precision import fp32_precisions
from tests.cli.tiny_runs import stage
from tests.devices.claimed import claimed_cuda


def result_of(folder: Path, *flags: str, remark: str = "") -> dict[str, Any]:
    done = stage("sp", "--result_dir", folder, "--epochs", "1", *flags)
    assert done.returncode == 0, done.stderr
    assert remark in done.stderr and ("emulates" in done.stderr) is bool(remark)
    (path,) = folder.glob("*/*/result.json")
    return json.loads(path.read_text())


@pytest.mark.full
def test_on_a_cpu_there_is_no_tf32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "x86_64"})
    remark = "--precision bf16: this processor only emulates it; fp32 takes less time here"
    result = result_of(tmp_path, "--precision", "bf16", "--tf32", remark=remark)
    assert result["precision"] == {"training": "bf16", "tf32": False, "figures": "fp32"}
    assert "fp32" not in result["hardware"] and result["config"]["tf32"] is True


@pytest.mark.full
@pytest.mark.parametrize("asked", [False, True])
def test_on_a_gpu_only_if_it_was_asked_for(asked: bool, tmp_path: Path) -> None:
    before = fp32_precisions()
    with claimed_cuda():
        result = result_of(tmp_path, "--device", "cuda:0", "--tf32" if asked else "--no-tf32")
    assert result["precision"] == {"training": "fp32", "tf32": asked, "figures": "fp32"}
    assert result["hardware"]["fp32"] == "matmul ieee, conv ieee, rnn ieee"  # where figures are computed
    assert fp32_precisions() == before
