"""Docstrings stand alone: the first sentence names its subject, whatever the reader has seen before."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import ROOT

FOLDERS = ("hybridprune", "benchmarks", "examples")
RIDDLE = re.compile(
    r"(What|Which|Who|Where|How|When|The same|Same|Those|These|They|Their|Them|That|This|It|Its|As|So|Such|Likewise"
    r"|Of|For|From|By|In|On|At|To|With|Without|None|Nothing|Some)\b"
)
"""Beginnings of a sentence that leave open what it is about."""


def docstrings(source: str) -> Iterator[tuple[str, str]]:
    """The name and the docstring of a module and of the public classes, functions and methods in it."""
    tree = ast.parse(source)
    yield "module", ast.get_docstring(tree) or ""
    inside: list[tuple[str, ast.Module | ast.ClassDef]] = [("", tree)]
    while inside:
        prefix, scope = inside.pop()
        for node in scope.body:
            if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if not node.name.startswith("_"):
                yield prefix + node.name, ast.get_docstring(node) or ""
                if isinstance(node, ast.ClassDef):
                    inside.append((f"{prefix}{node.name}.", node))


def riddles(source: str) -> list[str]:
    """The docstrings whose first sentence begins without its subject."""
    return [f"{name}: {text.splitlines()[0]}" for name, text in docstrings(source) if RIDDLE.match(text)]


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_first_sentence_names_its_subject(folder: str) -> None:
    files: list[Path] = sorted((ROOT / folder).rglob("*.py"))
    assert files
    assert {str(file): found for file in files if (found := riddles(file.read_text()))} == {}


def test_a_riddle_is_seen() -> None:
    source = (
        '"""Sums."""\nclass A:\n    """Those of B."""\n    def f(self): """Of it."""\n    def _g(self): """As f."""'
    )
    assert riddles(source) == ["A: Those of B.", "A.f: Of it."]
