# pyright: strict, reportUnnecessaryIsInstance=false
"""The result of ``cascade``, and its files: members with their edits, gates, and what is expected of them."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast, get_args

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hybridprune.api.first_look import device_of
from hybridprune.api.saved_folder import SPEC, WEIGHTS
from hybridprune.engine.plain import plain_copy, unwrapped
from hybridprune.errors import UserError
from hybridprune.json_text import read_json, short, value_at
from hybridprune.models.cascade import Answer, Cascade
from hybridprune.models.edits import Edit, apply_edits, edit_from_json
from hybridprune.models.origin import note_origin, origin_of
from hybridprune.report.bootstrap import Difference
from hybridprune.store.weights import load_tensors, read_tensors
from hybridprune.tables import Table

KIND = "cascade"
"""Of a saved record; that of a pruned module has none."""


@dataclass(frozen=True)
class Member:
    """One network of a cascade on the calibration images."""

    name: str
    macs: int
    """Of one image."""
    accuracy: float
    """Alone, on all of the images."""
    rate: float
    """The share of the images that it runs on."""


@dataclass(frozen=True)
class Cascaded:
    """A cascade and what is expected of it."""

    module: Cascade
    """Copies of the members, and the gates. It gives a `Routed`; called, this object gives logits."""
    members: tuple[Member, ...]
    """Cheapest first."""
    macs: float
    """Expected of an image: their mean on the calibration images, gates counted."""
    budget_macs: float
    dense_macs: int
    """Of the dearest member, uncut where it is a result of `prune`."""
    accuracy: float
    """On the calibration images, each half of them by gates that were fitted on the other half."""
    ahead: Difference
    """The accuracy over that of the best single member within the budget, on the same images, and its 95 % interval."""

    def __call__(self, images: Tensor) -> Tensor:
        """Logits ``[B, classes]`` of ``[B, C, H, W]`` images: each runs as many members as it needs."""
        return self.module(images, mode="executed").logits

    @property
    def pays(self) -> bool:
        """Whether it beats the best single member within the budget, beyond the interval."""
        return self.ahead.beats

    def summary(self) -> None:
        """Print `table`, and below it what is expected of the cascade."""
        print(self.table().plain(), self, sep="\n\n")

    def table(self) -> Table:
        """The members, a row each: MACs of one image, accuracy alone, and the share of the images that it runs on."""
        rows = [(m.name, f"{m.macs:,}", f"{100 * m.accuracy:.2f}", f"{100 * m.rate:.1f}") for m in self.members]
        return Table(("Member", "MACs", "Accuracy %", "Runs on %"), "lrrr", rows)

    def to_json(self) -> dict[str, object]:
        """A plain dictionary: how the members are joined, what each was cut to, and all figures."""
        edits = [[edit.to_json() for edit in origin_of(module).edits] for module in self.module.members]
        members = [{**asdict(member), "edits": cut} for member, cut in zip(self.members, edits, strict=True)]
        return {
            "kind": KIND,
            "classes": self.module.classes,
            "answer": self.module.answer,
            "members": members,
            "macs": self.macs,
            "budget_macs": self.budget_macs,
            "dense_macs": self.dense_macs,
            "accuracy": self.accuracy,
            "ahead": self.ahead._asdict(),
        }

    def __str__(self) -> str:
        mean, low, high = (100 * value for value in self.ahead)
        return (
            f"cascade of {len(self.members)}: {self.macs:,.0f} MACs an image ({self.macs / self.dense_macs:.1%} of "
            f"{self.dense_macs:,}), accuracy {self.accuracy:.2%}, {mean:+.2f} [{low:+.2f}, {high:+.2f}] points over "
            "the best single member within the budget"
        )

    def __repr__(self) -> str:
        return f"<{self}>"

    def _repr_html_(self) -> str:
        """The line and the table, for notebooks."""
        return f"<p>{html.escape(str(self))}</p>{self.table().html()}"


def restore_cascaded(folder: Path, into: object) -> Cascaded:
    """The cascade that was saved in ``folder``, of copies of the members ``into``; see `restore`."""
    spec, file = folder / SPEC, folder / WEIGHTS
    try:
        found = _read(read_json(spec))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{spec}: not a cascade's specification ({error}); save it again") from error
    saved = found.members
    if not isinstance(into, list | tuple):
        raise UserError(
            f"into: is a {type(into).__name__}, and {folder} holds a cascade; give a list of fresh instances of its "
            f"{len(saved)} members, cheapest first"
        )
    given = cast(list[object] | tuple[object, ...], into)
    if len(given) != len(saved):
        raise UserError(
            f"into: are {len(given)}, and {folder} holds a cascade of {len(saved)}; give fresh instances of "
            f"{', '.join(member.name for member, _ in saved)}"
        )
    members = [
        _remade(f"into[{k}]", module, member, edits, folder)
        for k, (module, (member, edits)) in enumerate(zip(given, saved, strict=True))
    ]
    net = Cascade(members, found.classes, found.answer).to(device_of(members[0])).eval()
    load_tensors(net, read_tensors(file), file)
    return Cascaded(net, tuple(member for member, _ in saved), **found.figures)


class _Saved(NamedTuple):
    """A record that was read: how the members are joined, each with its edits, and the figures."""

    classes: int
    answer: Answer
    members: list[tuple[Member, tuple[Edit, ...]]]
    figures: dict[str, Any]


def _read(record: Any) -> _Saved:
    """The inverse of `Cascaded.to_json`; raises KeyError, TypeError or ValueError on anything else."""
    answer = value_at(record, "answer", str)
    if answer not in get_args(Answer):
        raise ValueError(f"unknown answer {short(answer)}")
    members: list[tuple[Member, tuple[Edit, ...]]] = []
    for each in value_at(record, "members", list):
        member = Member(
            value_at(each, "name", str),
            value_at(each, "macs", int, 0),
            value_at(each, "accuracy", float, 0, 1),
            value_at(each, "rate", float, 0, 1),
        )
        members.append((member, tuple(map(edit_from_json, value_at(each, "edits", list)))))
    if not members:
        raise ValueError("members are none")
    figures: dict[str, Any] = {
        "macs": value_at(record, "macs", float, 0),
        "budget_macs": value_at(record, "budget_macs", float, 0),
        "dense_macs": value_at(record, "dense_macs", int, 1),
        "accuracy": value_at(record, "accuracy", float, 0, 1),
        "ahead": Difference(*(value_at(record, f"ahead.{name}", float, -1, 1) for name in Difference._fields)),
    }
    return _Saved(value_at(record, "classes", int, 1), cast(Answer, answer), members, figures)


def _remade(argument: str, given: object, member: Member, edits: Sequence[Edit], folder: Path) -> nn.Module:
    """A copy of a fresh instance with the edits of a member."""
    if not isinstance(given, nn.Module):
        raise UserError(f"{argument}: is a {type(given).__name__}; give a fresh instance of member {member.name}")
    if any(map(is_lazy, given.parameters())):
        raise UserError(f"{argument}: {type(given).__name__} has lazy layers without a shape; run it on a batch first")
    found = plain_copy(unwrapped(given))
    origin = origin_of(found)
    try:
        apply_edits(found, edits)
    except ValueError as error:
        where = f"member {member.name} of {folder}"
        raise UserError(f"{argument}: is another kind of module than {where} ({error}); give one of that") from error
    note_origin(found, replace(origin, edits=tuple(edits)))
    return found
