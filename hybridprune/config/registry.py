"""Names that options take and that users can add to: registered ones, those of installed packages, ``module:Name``."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TypeGuard

from hybridprune.config.suggest import suggest
from hybridprune.errors import UserError


class Extension:
    """An entry of a registry. From Python, an option takes it in the place of a name."""


@dataclass(frozen=True)
class Registry(Collection[str]):
    """The names of one kind of thing, and how each is found.

    As a collection, it holds every name that an option may have. To ask it imports nothing; `load` does.
    """

    group: str
    """The entry points by which installed packages add to it."""
    built_in: Mapping[str, str]
    """Where each of ours stands, as ``module:Name``, so that only what is used is imported."""
    elsewhere: str = ""
    """``elsewhere:NAME`` is none of its names."""
    added: dict[str, object] = field(default_factory=dict)
    """What this process has added."""

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        return name in self.added or name in self.built_in or self.imports(name) or name in self._installed()

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self.built_in, *sorted({*self.added, *self._installed()})]))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def ours(self, name: str) -> bool:
        """Whether the name is of one that comes with this package, or of ``elsewhere``."""
        return name in self.built_in or name.startswith(f"{self.elsewhere}:")

    def imports(self, name: object) -> bool:
        """Whether the name is a ``module:Name``, which says what is imported."""
        return _is_reference(name) and not name.startswith(f"{self.elsewhere}:")

    def add(self, name: str, value: object) -> None:
        """Let ``name`` mean ``value`` in this process; UserError if it means something else, or could."""
        if not isinstance(name, str) or not name or ":" in name or "," in name or name != name.strip():
            raise UserError(f"name {name!r}: give a text without colons, commas and spaces around it")
        if name in self.built_in or self.added.get(name, value) is not value or name in self._installed():
            raise UserError(f"name {name!r}: is taken; choose another one")
        self.added[name] = value

    def load(self, name: str, source: str) -> object:
        """The object that ``name`` stands for, imported if need be; UserError, naming the flag ``source``, if none."""
        if name in self.added:
            return self.added[name]
        if name in self.built_in:
            module, _, attribute = self.built_in[name].partition(":")
            return getattr(import_module(module), attribute)
        if self.imports(name):
            return _named(name, f"{source} {name}")
        offers = self._installed().get(name, [])
        packages = " and ".join(sorted(point.dist.name if point.dist else point.value for point in offers))
        if not offers:
            raise UserError(f"{source} {name}: there is no such name; use one of {', '.join(self)}")
        if len(offers) > 1:
            raise UserError(f"{source} {name}: {packages} both offer it; uninstall one of them")
        return _named(offers[0].value, f"{source} {name}: of the package {packages}")

    def _installed(self) -> dict[str, list[EntryPoint]]:
        found: dict[str, list[EntryPoint]] = {}
        for point in entry_points(group=self.group):
            found.setdefault(point.name, []).append(point)
        return found


def _is_reference(name: object) -> TypeGuard[str]:
    """Whether it has the form ``module:Name``, each part with dots or without."""
    if not isinstance(name, str) or name.count(":") != 1:
        return False
    return all(word.isidentifier() for part in name.split(":") for word in part.split("."))


def _named(reference: str, source: str) -> object:
    """What ``module:Name`` means; the module is an installed one, or lies in the working directory."""
    module, _, name = reference.strip().partition(":")
    here = os.getcwd()
    path = list(sys.path)
    sys.path.append(here)  # at the end: a file of the user's shall not hide a package that others import
    try:
        found: object = import_module(module)
    except (Exception, SystemExit) as error:  # whatever somebody else's module does
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            close = suggest(str(error.name), (file.stem for file in Path(here).glob("*.py")))
            remedy = f"there is no module {error.name}, installed or in {here}{close}"
        else:
            remedy = f"importing {module} fails ({in_a_line(error)})"
        raise UserError(f"{source}: {remedy}; give an importable module:Name") from error
    finally:
        sys.path[:] = path
    for word in name.split("."):
        if not hasattr(found, word):
            close = suggest(word, (own for own in dir(found) if not own.startswith("_")))
            raise UserError(f"{source}: {module} has no {name}; give a name that it defines{close}")
        found = getattr(found, word)
    return found


def in_a_line(error: BaseException) -> str:
    """An error of somebody else's code, with the place where it was raised."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    file, line = (place.tb_frame.f_code.co_filename, place.tb_lineno) if place is not None else ("", 0)
    if isinstance(error, SyntaxError):
        file, line = error.filename or "", error.lineno or 0
    text = " ".join(str(error.msg if isinstance(error, SyntaxError) else error).split())
    return f"{type(error).__name__}: {text}, {os.path.basename(file)} line {line}"
