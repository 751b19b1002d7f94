from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from hybridprune.report import collect, render
from hybridprune.report.__main__ import main
from tests.processes import run_forked
from tests.report.run_folders import result, write, write_lineage


def test_command_prints_markdown_and_mentions_unfinished_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_lineage(tmp_path)
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "spec.json").write_text("{}")
    assert main([str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert said.err == f"not finished: {tmp_path / 'begun'}\n"
    assert said.out == render(collect(tmp_path), "markdown")


def test_help_names_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["--help"])
    said = capsys.readouterr().out
    for word in ("python -m hybridprune.report", "RESULTS", "--format", "--output", "--plot", "latex"):
        assert word in said


@pytest.mark.full
def test_mistake_exits_2_with_one_line(tmp_path: Path) -> None:
    done = run_forked("hybridprune.report", tmp_path, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and str(tmp_path) in done.stderr


def test_writes_table_and_plots_and_leaves_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_lineage(tmp_path / "runs")
    made = tmp_path / "made"
    made.mkdir()
    (made / "table.json").write_text("old")
    arguments = [str(tmp_path / "runs"), "--format", "json", "--output", str(made / "table.json"), "--plot"]
    for plot in ("plot.png", "plot.svg"):
        assert main([*arguments, str(made / plot)]) == 0
        assert capsys.readouterr() == ("", f"written: {made / plot}\nwritten: {made / 'table.json'}\n")
    assert len(json.loads((made / "table.json").read_text(encoding="utf-8"))["rows"]) == 3
    assert (made / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (made / "plot.svg").read_text(encoding="utf-8")
    assert sorted(path.name for path in made.iterdir()) == ["plot.png", "plot.svg", "table.json"]


@pytest.mark.parametrize("flag", ["--output", "--plot"])
def test_unwritable_target_is_a_user_error(tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str) -> None:
    write_lineage(tmp_path / "runs")
    folder = tmp_path / "folder.png"
    folder.mkdir()
    for target in (tmp_path / "missing" / "file.png", folder):
        assert main([str(tmp_path / "runs"), flag, str(target)]) == 2
        assert f"error: {flag} {target}" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.png", "runs"]


def test_unknown_kind_of_plot_is_refused_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "missing"), "--plot", str(tmp_path / "plot.pdf")]) == 2
    assert "--plot" in (message := capsys.readouterr().err) and ".svg" in message


def test_a_table_needs_no_matplotlib_and_a_plot_says_that_it_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lineage(tmp_path / "runs")
    for name in ("matplotlib", "hybridprune.report.plot"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main([str(tmp_path / "runs"), "--html", str(tmp_path / "page.html")]) == 0
    assert capsys.readouterr().err.endswith(f"written: {tmp_path / 'page.html'}\n")
    assert main([str(tmp_path / "runs")]) == 0
    assert "| static" in capsys.readouterr().out
    assert main([str(tmp_path / "runs"), "--plot", "plot.png"]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "error: --plot plot.png: needs matplotlib; pip install 'matplotlib'\n")


def test_repeats_are_mentioned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "1", result("sp", "a"))
    write(tmp_path / "2", result("sp", "b"))
    assert main([str(tmp_path), "--format", "csv"]) == 0
    assert capsys.readouterr().err == "not counted: 1 repeat(s) of a run with equal settings and seeds\n"
