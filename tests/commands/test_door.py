"""The door of all commands: names, exit codes, and Ctrl-C while a command is being imported."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from hybridprune.commands import door
from hybridprune.errors import UserError
from hybridprune.version import __version__
from tests import ROOT

SCRIPTS = ("main_sp.py", "main_prune.py", "main_rl_prune.py")
MODULES = ("bench", "evaluate", "export", "reconfigure", "report", "sweep", "sweep_runs")


@pytest.mark.parametrize("name", door.COMMANDS)
def test_every_subcommand_leads_to_a_function(name: str) -> None:
    module, _, function = door.COMMANDS[name].function.partition(":")
    assert callable(getattr(import_module(module), function))


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_help_names_every_subcommand(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert door.main(words, "hybridprune") == 0
    said = capsys.readouterr().out
    assert said.startswith("usage: hybridprune COMMAND")
    assert all(f"  {name} " in said and command.about in said for name, command in door.COMMANDS.items())


def test_the_line_for_bash_completes_every_subcommand(capsys: pytest.CaptureFixture[str]) -> None:
    (program,) = re.findall(r"^complete .*awk '(.*?)'", (ROOT / "docs/commands.md").read_text(), flags=re.MULTILINE)
    assert door.main(["--help"], "hybridprune") == 0
    words = subprocess.run(["awk", program], input=capsys.readouterr().out, capture_output=True, text=True).stdout
    assert words.split() == list(door.COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert door.main(["--version"], "hybridprune") == 0
    assert capsys.readouterr().out == f"hybridprune {__version__}\n"


def test_a_mistyped_subcommand_is_told_the_closest(capsys: pytest.CaptureFixture[str]) -> None:
    assert door.main(["evalute", "run"], "hybridprune") == 2
    assert capsys.readouterr().err == (
        "error: evalute: no such command, did you mean evaluate?; see hybridprune --help\n"
    )


def test_help_of_a_subcommand_is_its_help(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr("hybridprune.commands.evaluate.main", lambda *given: called.append(given))
    assert door.main(["help", "evaluate"], "hybridprune") == 0
    assert called == [(["--help"], "hybridprune evaluate")]


def test_the_function_is_told_what_was_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr("hybridprune.commands.evaluate.main", lambda *given: called.append(given))
    assert door.main(["evaluate", "run", "--bs", "3"], "hybridprune") == 0
    assert called == [(["run", "--bs", "3"], "hybridprune evaluate")]


def test_a_users_mistake_in_a_subcommand_exits_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(words: object, prog: str) -> None:
        raise UserError(f"{prog}: no")

    monkeypatch.setattr("hybridprune.commands.evaluate.main", refuse)
    assert door.main(["evaluate"], "hybridprune") == 2
    assert capsys.readouterr().err == "error: hybridprune evaluate: no\n"


def test_ctrl_c_while_a_command_is_imported_exits_130_in_every_door(tmp_path: Path) -> None:
    """Whoever asks for torch is interrupted, as the user does who waits for it."""
    program = f"""
import runpy, sys

class Interrupts:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupts())
for script in {SCRIPTS}:
    sys.argv = [script]
    try:
        runpy.run_path({str(ROOT)!r} + "/" + script, run_name="__main__")
    except SystemExit as end:
        print(script, end.code)
for module, words in [("hybridprune." + name, ()) for name in {MODULES}] + [("hybridprune", ("train",))]:
    sys.argv = [module, *words]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        print(module, end.code)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.stderr == ""
    doors = [*SCRIPTS, *(f"hybridprune.{name}" for name in MODULES), "hybridprune"]
    assert done.stdout.splitlines() == [f"{name} 130" for name in doors]


@pytest.mark.parametrize("name", [name for name in door.COMMANDS if name not in ("train", "prune", "route")])
def test_help_of_a_subcommand_says_every_default(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stages' texts are made with theirs (`config.resolve`)."""
    parsers: list[argparse.ArgumentParser] = []

    def stop(parser: argparse.ArgumentParser, *given: object) -> None:
        parsers.append(parser)
        raise UserError

    for parse in ("parse_args", "parse_known_args"):
        monkeypatch.setattr(argparse.ArgumentParser, parse, stop)
    assert door.main([name], "hybridprune") == 2
    (parser,) = parsers
    assert parser.prog == f"hybridprune {name}"
    valued = [action for action in parser._actions if action.option_strings and action.nargs != 0]
    assert [action.option_strings[0] for action in valued if "default" not in (action.help or "")] == []


def test_a_missing_package_is_told_in_one_line() -> None:
    # -S: without the folders that packages are installed in
    done = subprocess.run([sys.executable, "-S", ROOT / "main_sp.py"], capture_output=True, text=True)
    expected = f"error: torch: not installed for {sys.executable}; pip install . in a clone installs what is needed\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)


def test_a_missing_module_of_our_own_is_our_mistake() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"hybridprune\.gone"):
        door.enter("hybridprune.gone:main", [], "hybridprune gone")
