"""The pages of the site, their runnable snippets, and the hook that writes their tables."""

from __future__ import annotations

import functools
import importlib.util
import re
from types import ModuleType

from tests import ROOT

PAGES = {str(path.relative_to(ROOT / "docs")): path.read_text() for path in sorted((ROOT / "docs").rglob("*.md"))}


def tables() -> ModuleType:
    """The hook of MkDocs."""
    spec = importlib.util.spec_from_file_location("tables", ROOT / "docs/_scripts/tables.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def rendered(page: str) -> str:
    """A page as it is shown, with its tables."""
    return tables().render(PAGES[page], page)


@functools.cache
def command_help(name: str, flag: str) -> str:
    """What a command of ``hybridprune`` prints for ``--help``, or ``--help-all``."""
    return tables().command_help([name, flag])


def snippets(page: str, mark: str = "runnable") -> list[str]:
    """The Python blocks of a page behind a line ``<!-- mark -->``, in their order."""
    return re.findall(rf"<!-- {mark} -->\n```python\n(.*?)```", PAGES[page], flags=re.DOTALL)
