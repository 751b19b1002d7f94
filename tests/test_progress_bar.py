"""Bars: on a terminal, where they are wanted; what they are put over goes on as without."""

from __future__ import annotations

import io
import sys
from types import ModuleType, SimpleNamespace

import pytest

from hybridprune import progress_bar
from hybridprune.progress_bar import Steps, bar, progress_bars


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_terminal(monkeypatch: pytest.MonkeyPatch, delay: float = 0.0) -> Terminal:
    """What standard error becomes; bars appear on it after ``delay``."""
    found = Terminal()
    monkeypatch.setattr("sys.stderr", found)
    monkeypatch.setattr(progress_bar, "DELAY", delay)
    return found


def test_a_terminal_shows_a_bar_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    steps = Steps(["a", "b"], "counting", "letter")
    assert list(steps) == list(steps) == ["a", "b"] and len(steps) == 2
    assert terminal.getvalue().count("counting:   0%") == 2
    with bar(description="by hand", total=2) as shown:
        shown.update()
    assert "by hand" in terminal.getvalue() and "?step/s" in terminal.getvalue()


def test_unwanted_bars_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    with progress_bars(False):
        assert list(Steps(["a", "b"], "counting")) == ["a", "b"]
        with progress_bars(True):
            list(Steps("c", "inside"))
        list(Steps("d", "counting"))
    assert "counting" not in terminal.getvalue() and "inside" in terminal.getvalue()
    list(Steps("e", "afterwards"))
    assert "afterwards" in terminal.getvalue()


def test_a_log_has_no_bars(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_bar, "DELAY", 0.0)
    assert list(Steps(iter("ab"), "counting")) == ["a", "b"]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("app", "shown"), [("IPKernelApp", True), ("TerminalIPythonApp", False)])
def test_a_notebook_has_bars_and_no_terminal(app: str, shown: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setattr("IPython.get_ipython", lambda: SimpleNamespace(config={app: {}}), raising=False)
    monkeypatch.setattr(progress_bar, "DELAY", 0.0)
    monkeypatch.setattr("sys.stdout", log := io.StringIO())  # where widgets' text goes
    monkeypatch.setattr("sys.stderr", log)
    for name in ("tqdm.auto", "tqdm.autonotebook"):  # as in a kernel of its own
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert list(Steps(["a", "b"], "counting")) == ["a", "b"]
    assert ("counting" in log.getvalue()) == shown
    with progress_bars(False):
        list(Steps(["a", "b"], "unwanted"))
    assert "unwanted" not in log.getvalue()


def test_what_is_done_soon_has_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch, delay=60.0)
    list(Steps("ab", "counting"))
    assert "counting" not in terminal.getvalue()


def test_another_process_shows_none(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    monkeypatch.setattr(progress_bar, "is_first", lambda: False)
    list(Steps("ab", "counting"))
    assert terminal.getvalue() == ""
