"""Options that remember what their maker gave: a default that somebody asked for is not one that nobody thought of."""

from __future__ import annotations

import dataclasses
import inspect
from dataclasses import InitVar, dataclass, field
from typing import Any, Self


class _Signature:
    """That of a dataclass's ``__init__``: `inspect` would show that of ``__new__``."""

    def __get__(self, made: object, owner: type) -> inspect.Signature:
        own = inspect.signature(owner.__init__)
        return own.replace(parameters=[p for p in own.parameters.values() if p.name not in ("self", "_copied")])


@dataclass(frozen=True)
class Given:
    """The base of dataclasses whose instances know which of their fields were given; see `given`.

    Copies know it as well: of `copy`, `pickle` and `dataclasses.replace`, whose changes are given in addition.
    """

    # `dataclasses.replace` passes on the attributes that are called as the arguments of ``__init__``: here, itself.
    _copied: InitVar[Any] = field(default=property(lambda self: self), kw_only=True)
    __signature__ = _Signature()

    def __new__(cls, *values: Any, **named: Any) -> Self:
        """As `object` does it, with a note of the arguments."""
        made = super().__new__(cls)
        old = named.pop("_copied", None)
        named |= zip((f.name for f in dataclasses.fields(cls)), values, strict=False)
        changed = {name for name, value in named.items() if old is None or value is not getattr(old, name, None)}
        vars(made)["_given"] = frozenset(changed) | (frozenset() if old is None else given(old))
        return made


def given(options: Given) -> frozenset[str]:
    """The names of the fields that whoever made ``options`` gave, whether as by default or not."""
    return vars(options)["_given"]
