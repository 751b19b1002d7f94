"""The origin of a pruned module. It hangs on the module, which can so be pruned again and still be rebuilt."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from torch import nn

from hybridprune.models.copies import copied
from hybridprune.models.edits import Edit, apply_edits
from hybridprune.models.replace import replace_module

_PLACE = "hybridprune_origin"


@dataclass(frozen=True)
class Origin:
    """The edits that have made a module, and what they were applied to."""

    edits: tuple[Edit, ...]
    outline: nn.Module
    """The module before any edit, on the meta device."""

    def rebuilt(self) -> nn.Module:
        """The outline with its edits, on the meta device. Raises ValueError if one of them does not fit."""
        model = copied(self.outline)
        apply_edits(model, self.edits)
        return model


def origin_of(model: nn.Module) -> Origin:
    """The origin of ``model``: itself, but for those of its parts (or all of it) that were pruned before."""
    known = vars(model).get(_PLACE)
    if isinstance(known, Origin):
        return known
    outline = copied(model).to("meta")
    edits: list[Edit] = []
    for name, module in list(outline.named_modules()):
        part = vars(module).get(_PLACE)
        if isinstance(part, Origin):
            edits += (dataclasses.replace(edit, layer=f"{name}.{edit.layer}") for edit in part.edits)
            replace_module(outline, name, part.outline)
    return Origin(tuple(edits), outline)


def note_origin(model: nn.Module, origin: Origin) -> None:
    """Hang it on the module, where copies of the module have it as well; no parameter and no part of its state."""
    vars(model)[_PLACE] = origin
