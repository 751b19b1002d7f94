"""The stages as subcommands: help in two lengths, and whose ``config.json`` is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hybridprune.commands import stages
from hybridprune.stages import prune
from tests.cli.test_flags import assert_helpful

STAGES = {"train": stages.TRAIN, "prune": stages.PRUNE, "route": stages.ROUTE}
SCRIPTS = {"train": "main_sp.py", "prune": "main_prune.py", "route": "main_rl_prune.py"}


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_shows_the_ten_options_that_matter(name: str, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    getattr(stages, name)(["--lr", "1", flag], f"hybridprune {name}")
    said = capsys.readouterr().out
    assert said.startswith(f"usage: hybridprune {name} ")
    assert said.endswith(f"hybridprune {name} --help-all shows all of them, in groups.\n")
    listed = [line.split(",")[0].split()[0] for line in said.splitlines() if line.startswith("  --")]
    general = {"--config_path", "--resume", "--dry-run", "--print-config"}
    assert {word for word in listed if word not in general} == {f"--{flag}" for flag in STAGES[name]}
    assert len(STAGES[name]) == 10


@pytest.mark.parametrize("name", STAGES)
def test_help_all_shows_every_option(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        getattr(stages, name)(["--help-all"], f"hybridprune {name}")
    said = capsys.readouterr().out
    assert said.startswith(f"usage: hybridprune {name} ")
    assert_helpful(SCRIPTS[name], said)


def test_prune_reads_config_json_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.json").write_text("{}")
    widths, told = [], []
    for content in (None, '{"width": 24}'):
        if content is not None:
            (tmp_path / "config.json").write_text(content)
        for words in ([], ["--config_path", "other.json"]):
            stages.prune([*words, "--print-config"], "hybridprune prune")
            said = capsys.readouterr()
            widths.append(json.loads(said.out)["width"])
            told.append(said.err)
    assert widths == [64, 64, 24, 64]
    assert told == ["", "", "configuration: config.json\n", ""]


def test_several_runs_name_the_file_that_was_read_unasked_as_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text('{"target_flops": 0.25}')
    monkeypatch.setattr(prune, "run", lambda *_: None)
    stages.prune(["--target_latency", "0.9", "0.7", "--dry-run"], "hybridprune prune")
    first, *runs = capsys.readouterr().err.splitlines()
    assert first == "configuration: config.json" and [line[:10] for line in runs] == ["run 1 of 2", "run 2 of 2"]


def test_help_says_which_file_is_read_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in STAGES:
        getattr(stages, name)(["--help"], f"hybridprune {name}")
        said = " ".join(capsys.readouterr().out.split())
        default = "config.json, where the working folder has one" if name == "prune" else "none"
        assert f"configuration file in JSON (default: {default})" in said


def test_help_shows_both_ends_of_the_fine_tuning(capsys: pytest.CaptureFixture[str]) -> None:
    stages.prune(["--help"], "hybridprune prune")
    said = " ".join(capsys.readouterr().out.split())
    assert "epochs of fine-tuning where nothing is cut (compression 0) (default: 10)" in said
    assert "in between, linear from epochs_start to epochs_end (default: 20)" in said


def test_help_of_route_names_both_estimators(capsys: pytest.CaptureFixture[str]) -> None:
    stages.route(["--help"], "hybridprune route")
    said = capsys.readouterr().out
    assert "REINFORCE" in said and "--estimator gumbel" in said
