"""The specification of a cascade: those of its members, of which each was a run's network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, get_args

from torch import nn

from hybridprune.config.networks import CASCADE
from hybridprune.config.options import DEEPEST
from hybridprune.json_text import short, texts_at, value_at
from hybridprune.models.cascade import Answer, Cascade
from hybridprune.models.edits import Edit
from hybridprune.models.spec import NetworkSpec
from hybridprune.models.trunk import graft

MOST = 8
"""Members of a cascade that a file may ask for."""


@dataclass(frozen=True)
class CascadeSpec:
    """A cascade's architecture: networks of the same classes, cheapest first, whose gates are left out."""

    members: tuple[NetworkSpec, ...]
    answer: Answer = "average"
    trunks: tuple[int, ...] = ()
    """For each member the blocks, and the stem, that it shares with the one before it, 0 for none; empty: all 0."""

    network = CASCADE

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
        return "-".join([CASCADE, *(member.label for member in self.members)])

    def __str__(self) -> str:
        from_block = [f" from block {trunk} on" if trunk else "" for trunk in self.trunks or (0,) * len(self.members)]
        return (
            f"{CASCADE} of {'; '.join(f'{each}{start}' for each, start in zip(self.members, from_block, strict=True))}"
        )

    def build(self) -> Cascade:
        """A cascade of freshly initialised members, all of their blocks executed, and gates as they start.

        ValueError if two members cannot share the trunk that they should.
        """
        return self.joined([member.build().backbone for member in self.members])

    def joined(self, members: Sequence[nn.Module]) -> Cascade:
        """The cascade of these whole networks, which become its own: a trunk is the dearer member's.

        ValueError if two members cannot share the trunk that they should.
        """
        own = list(members)
        for dearer in range(len(own) - 1, 0, -1):
            if self.trunks and self.trunks[dearer]:
                own[dearer - 1 : dearer + 1] = graft(own[dearer], own[dearer - 1], self.trunks[dearer])
        return Cascade(own, self.classes, self.answer)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        members = [member.to_json() for member in self.members]
        trunks = {"trunks": list(self.trunks)} if self.trunks else {}
        return {"network": CASCADE, "members": members, "answer": self.answer, **trunks}

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> CascadeSpec:
        """The inverse of ``to_json``; raises KeyError, TypeError or ValueError on anything else."""
        if unknown := sorted(record.keys() - {"network", "members", "answer", "trunks"}):
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
        return CascadeSpec(members, answer, _trunks(record, len(members)))  # type: ignore[arg-type]


def _trunks(record: Mapping[str, Any], members: int) -> tuple[int, ...]:
    """The trunks in a record; specifications older than trunks have none. ValueError for what can't be one each."""
    given = value_at({"trunks": [], **record}, "trunks", list)
    for trunk in given:
        value_at({"trunks": trunk}, "trunks", int, 0, DEEPEST)
    if given and (len(given) != members or given[0] != 0):
        raise ValueError(f"trunks {short(given)} of {members} members; give one each, 0 for the first")
    if any(0 < after < before for before, after in pairwise(given)):
        raise ValueError(f"trunks {short(given)}: one begins before the features that its member goes on from")
    return tuple(given)


def spec_from_json(record: Mapping[str, Any]) -> NetworkSpec | CascadeSpec:
    """The specification of a network of either kind; raises KeyError, TypeError or ValueError on anything else."""
    if isinstance(record, Mapping) and record.get("network") == CASCADE:
        return CascadeSpec.from_json(record)
    return NetworkSpec.from_json(record)
