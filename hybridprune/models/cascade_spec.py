"""The specification of a cascade: those of its members, of which each was a run's network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from hybridprune.json_text import short, texts_at, value_at
from hybridprune.models.cascade import Answer, Cascade
from hybridprune.models.edits import Edit
from hybridprune.models.spec import NetworkSpec

NAME = "cascade"
MOST = 8
"""Members of a cascade that a file may ask for."""


@dataclass(frozen=True)
class CascadeSpec:
    """A cascade's architecture: networks of the same classes, cheapest first, whose gates are left out."""

    members: tuple[NetworkSpec, ...]
    answer: Answer = "average"

    network = NAME

    @property
    def classes(self) -> int:
        """Classes of every member."""
        return self.members[0].classes

    @property
    def depth(self) -> int:
        """Layers of all members that say how deep they are."""
        return sum(member.arguments.get("depth", 0) for member in self.members)

    @property
    def arguments(self) -> dict[str, Any]:
        """The depth of all members together."""
        return {"depth": self.depth}

    @property
    def edits(self) -> tuple[Edit, ...]:
        """Edits of the cascade itself, none: its members have theirs."""
        return ()

    @property
    def label(self) -> str:
        """A short name for folders and tables, e.g. cascade-resnet20-w16-resnet32-w16."""
        return "-".join([NAME, *(member.label for member in self.members)])

    def __str__(self) -> str:
        return f"{NAME} of {'; '.join(map(str, self.members))}"

    def build(self) -> Cascade:
        """A cascade of freshly initialised members, all of their blocks executed, and gates as they start."""
        return Cascade([member.build().backbone for member in self.members], self.classes, self.answer)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {"network": NAME, "members": [member.to_json() for member in self.members], "answer": self.answer}

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> CascadeSpec:
        """The inverse of ``to_json``; raises KeyError, TypeError or ValueError on anything else."""
        if unknown := sorted(record.keys() - {"network", "members", "answer"}):
            raise ValueError(f"unknown field {short(unknown[0])}")
        given = value_at(record, "members", list)
        if not 2 <= len(given) <= MOST:
            raise ValueError(f"a cascade of {len(given)} members; it has 2 to {MOST}")
        members = tuple(map(NetworkSpec.from_json, given))
        if len({member.classes for member in members}) > 1:
            raise ValueError("members of different numbers of classes")
        (answer,) = texts_at({"answer": [record["answer"]]}, "answer")
        if answer not in get_args(Answer):
            raise ValueError(f"unknown answer {short(answer)}")
        return CascadeSpec(members, answer)  # type: ignore[arg-type]


def spec_from_json(record: Mapping[str, Any]) -> NetworkSpec | CascadeSpec:
    """The specification of a network of either kind; raises KeyError, TypeError or ValueError on anything else."""
    if isinstance(record, Mapping) and record.get("network") == NAME:
        return CascadeSpec.from_json(record)
    return NetworkSpec.from_json(record)
