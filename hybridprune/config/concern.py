"""A concern: a dataclass of options that belong together, checked where it is made."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from hybridprune.config.check import base_of, check, default_of, options_of, plain
from hybridprune.config.flag_names import renamed
from hybridprune.config.given import Given, given
from hybridprune.errors import UserError


class Contradiction(UserError):
    """Options that are each valid and contradict each other, whatever the network and the images are."""

    def __init__(self, message: str, told: str = "") -> None:
        super().__init__(message)
        self.told = told
        """The message for a command line, with flags."""


@dataclass(frozen=True)
class Checked(Given):
    """Options that are checked where they are made, by the rules of their flags: the base of every concern.

    A value that may not be raises a UserError that names ``class.field``. A command line checks its words beforehand,
    by the same `check`, so that it can name the flag. A default that follows another option is that of this one.
    """

    def __post_init__(self, _copied: object) -> None:
        for o in options_of("", self):
            unsaid = o.name not in given(self) or (o.default is None and base_of(o.kind)[1])
            followed = o.metadata["follows"] is not None and unsaid
            value = default_of(o, vars(self)) if followed else plain(o.default)
            value = check(o, value, f"{type(self).__name__}.{o.name}")
            object.__setattr__(self, o.name, value)  # the dataclasses are frozen
        refuse(self, self.contradictions(), [self])

    def contradictions(self) -> Iterator[str]:
        """The contradictions between fields of this concern, in flags and with a way out, a line each."""
        return iter(())


def refuse(owner: object, contradictions: Iterable[str], concerns: Iterable[Any]) -> None:
    """Raise the first of the ``contradictions`` in ``owner``, with the fields of its ``concerns`` in place of flags."""
    for told in contradictions:
        names = {flag: o.name for concern in concerns for o in options_of("", concern) for flag in o.flags}
        raise Contradiction(f"{type(owner).__name__}: {renamed(told, names)}", told)
