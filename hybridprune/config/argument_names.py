"""Messages that name flags, for those who call from Python: with the names of arguments and fields."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager

from hybridprune.config.check import options_of
from hybridprune.config.flag_names import renamed
from hybridprune.config.options import PruneConfig, RlConfig, SpConfig
from hybridprune.errors import RunFailed, UserError


@contextmanager
def argument_names(own: Collection[str] = (), **concerns: type) -> Generator[None]:
    """Inside, or in the function it decorates, errors name arguments: ``--allocation`` becomes ``cut.allocation``.

    ``concerns`` are the arguments that take options, with their classes; an option that is an argument by itself is one
    of ``own``. Other flags of the stages become the bare names of their fields, and what is no flag of theirs stays.
    """
    try:
        yield
    except (UserError, RunFailed) as error:
        error.args = (in_argument_names(str(error), own, concerns),)
        raise


def in_argument_names(message: str, own: Collection[str], concerns: Mapping[str, type]) -> str:
    """``message`` with the names of arguments and fields in the place of flags; see `argument_names`."""
    names = {"resume": "the flag resume"}
    for config in (RlConfig(), SpConfig(), PruneConfig()):  # the later one wins
        for f in dataclasses.fields(config):
            names |= {flag: o.name for o in options_of("", getattr(config, f.name)) for flag in o.flags}
    for argument, concern in concerns.items():
        for o in options_of(argument, concern()):
            names |= {flag: o.name if o.name in own else f"{argument}.{o.name}" for flag in o.flags}
    return renamed(message, names)
