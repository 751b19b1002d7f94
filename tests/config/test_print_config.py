"""``--print-config`` prints a configuration file that gives the same configuration, and does nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hybridprune.config import SpConfig, resolve
from hybridprune.stages import sp


def test_printed_configuration_can_be_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--depth", "8", "--alpha", "0.25", "--scheduler_id", "2", "--result_dir", str(tmp_path / "results")]
    sp.main([*argv, "--print-config"])
    printed = capsys.readouterr().out
    assert json.loads(printed)["alpha"] == 0.25

    path = tmp_path / "config.json"
    path.write_text(printed)
    again = resolve(SpConfig(), [], prog="main_sp.py", description="", config_path=str(path)).config
    assert again == resolve(SpConfig(), argv, prog="main_sp.py", description="").config
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]
