"""``--print-config`` prints a configuration file that gives the same configuration, and does nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from hybridprune.config import PruneConfig, RlConfig, SpConfig, resolve
from hybridprune.stages import prune, rl_prune, sp


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


GATING = {"gate": "ff1", "gating": "soft", "gate_noise": 0.5}
ROUTING = {
    "gate": "ff2",
    "target_flops": 0.6,
    "price_step": 0.05,
    "estimator": "gumbel",
    "train": "gates",
    "kd_weight": 0.3,
    "kd_temperature": 2.0,
    "entropy_bonus": 0.01,
    "rate_bound": 0.2,
    "rate_bound_weight": 3.0,
}


@pytest.mark.parametrize(
    ("main", "default", "options"),
    [(sp.main, SpConfig(), GATING), (prune.main, PruneConfig(), GATING), (rl_prune.main, RlConfig(), ROUTING)],
    ids=["sp", "prune", "rl"],
)
def test_how_gates_decide_and_learn_is_printed(
    main: Callable[[Sequence[str]], object],
    default: Any,
    options: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    empty = tmp_path / "empty.json"  # in place of the command's own file
    empty.write_text("{}")
    argv = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    main([*argv, "--config_path", str(empty), "--print-config"])
    printed = capsys.readouterr().out
    assert {name: json.loads(printed)[name] for name in options} == options
    main(["--config_path", str(empty), "--print-config"])
    defaults = json.loads(capsys.readouterr().out)
    assert all(name in defaults and defaults[name] != value for name, value in options.items())

    path = tmp_path / "config.json"
    path.write_text(printed)
    again = resolve(default, [], prog="main.py", description="", config_path=str(path)).config
    assert again == resolve(default, argv, prog="main.py", description="").config != default
