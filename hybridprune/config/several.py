"""Several runs by one command: of an option that takes several values, each run has one (pure)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from hybridprune.config.check import Option, base_of, check, shown
from hybridprune.config.experiment import swept_name, value_text
from hybridprune.config.options import BUDGETS, PruneConfig
from hybridprune.errors import UserError


@dataclass(frozen=True)
class Several:
    """The different values, two or more, of the option ``name`` of a cut; each is for a run of its own."""

    name: str
    values: tuple[float, ...]

    def configs(self, first: PruneConfig) -> list[PruneConfig]:
        """The configurations of the runs: those of runs that get one of the values alone, and a name for each.

        ``first`` has the first value, and the common part of their names (``exp_name``). These are called as
        ``hybridprune grid`` calls them. UserError if the runs would be the same: something is in the place of a ratio.
        """
        self._refuse_unread(first)
        made = []
        for value in self.values:
            typed = int(value) if value.is_integer() else value
            name = swept_name(first.run.exp_name, (f"prune.{self.name}={value_text(typed)}",))
            cut = dataclasses.replace(first.cut, **{self.name: value})
            made.append(dataclasses.replace(first, run=dataclasses.replace(first.run, exp_name=name), cut=cut))
        return made

    def __str__(self) -> str:
        """As it is typed."""
        return " ".join(map(str, self.values))

    def _refuse_unread(self, config: PruneConfig) -> None:
        if self.name != "prune_ratio":
            return
        for name, value in (*((n, getattr(config.cut, n)) for n in BUDGETS), ("iter_ratios", config.stage.iter_ratios)):
            if value is not None:
                raise UserError(
                    f"--prune_ratio {self}: is not read where there is --{name} {shown(value)}; give --{name} none"
                )


def check_several(o: Option, value: Any, source: str) -> Any:
    """`check`, where the option takes several values also of a list; of two or more the tuple is given back.

    Raises UserError if a value is in it twice, or none is.
    """
    if not isinstance(value, list) or not o.metadata["several"]:
        return check(o, value, source)
    one = o if len(value) == 1 else dataclasses.replace(o, kind=base_of(o.kind)[0])  # none is no value of a run
    found: list[Any] = [check(one, each, source) for each in value]
    if not found or len(set(found)) < len(found):
        raise UserError(f"{source} {shown(value)}: must hold each value once, and one at least")
    return tuple(found) if len(found) > 1 else found[0]
