"""The runnable snippets of the pages run as they stand, one after the other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

import hybridprune
from hybridprune.config.methods import METHODS
from tests.cli.tiny_runs import folder_of, stage
from tests.docs.pages import PAGES, snippets


@pytest.mark.full
@pytest.mark.filterwarnings("ignore::UserWarning")  # of layers that are left alone
@pytest.mark.parametrize("page", ["quickstart.md", "api.md"])
def test_the_snippets_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    blocks = snippets(page)
    assert len(blocks) >= 3
    with patch.dict(METHODS.added):  # a name that is registered goes again
        for number, block in enumerate(blocks):
            exec(compile(block, f"{page}, snippet {number}", "exec"), names)


def test_every_public_function_has_an_example() -> None:
    text = "\n".join(re.findall(r"```python\n(.*?)```", PAGES["api.md"], flags=re.DOTALL))
    functions = [n for n in hybridprune.__all__ if callable(getattr(hybridprune, n)) and n[0].islower()]
    assert [name for name in functions if f"hybridprune.{name}(" not in text] == []


def test_every_public_name_is_in_the_reference() -> None:
    listed = set(re.findall(r"^::: hybridprune\.(\w+)$", PAGES["api.md"], flags=re.MULTILINE))
    assert listed >= {name for name in hybridprune.__all__ if not name.startswith("_")}


@pytest.mark.full
def test_the_snippets_on_a_run_do_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))
    results = tmp_path / "results"
    assert stage("sp", "--result_dir", results, "--epochs", "1").returncode == 0
    (block,) = snippets("api.md", "runnable with a run")
    names: dict[str, Any] = {"run": folder_of(results, "sp")}
    exec(compile(block, "api.md", "exec"), names)
    assert len(names["finished"].classes) == 10
