# pyright: strict, reportUnnecessaryIsInstance=false
"""Saving what ``prune`` and ``cascade`` return, and putting it together again elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import overload

from torch import nn

from hybridprune.ambient import isolated
from hybridprune.api.cascaded import KIND, Cascaded, restore_cascaded
from hybridprune.api.pruned import Pruned, PrunedSpec, restore_pruned
from hybridprune.api.saved_folder import check_rebuilt, path_of, record_in, write_folder
from hybridprune.config import argument_names
from hybridprune.errors import UserError
from hybridprune.models.origin import origin_of


@argument_names()
def save(result: Pruned | Cascaded, folder: str | Path) -> None:
    """Write ``spec.json`` and ``model.safetensors`` of a pruned module or a cascade into ``folder``, atomically.

    First the outline of the module, or of each member, is rebuilt without its weights. Raises UserError, and writes
    nothing, if that is not the module: if it was changed after it was pruned or joined, by `deploy` say.
    """
    if not isinstance(result, Pruned | Cascaded):
        raise UserError(f"result: is a {type(result).__name__}; give what prune or cascade returns, not its module")
    path = path_of(folder, "folder")
    if isinstance(result, Pruned):
        check_rebuilt(result.module, result.spec.edits, "the module", "prune")
    else:
        for member, module in zip(result.members, result.module.members, strict=True):
            check_rebuilt(module, origin_of(module).edits, f"member {member.name}", "cascade")
    write_folder(path, result.module, result.spec.to_json() if isinstance(result, Pruned) else result.to_json())


@overload
def restore(source: PrunedSpec | str | Path, into: nn.Module) -> nn.Module: ...
@overload
def restore(source: str | Path, into: Sequence[nn.Module]) -> Cascaded: ...
@argument_names()
@isolated()
def restore(source: PrunedSpec | str | Path, into: nn.Module | Sequence[nn.Module]) -> nn.Module | Cascaded:
    """Put together what ``save`` wrote: a pruned module, or a cascade of which ``into`` are the members.

    **A pruned module.** ``into``, a fresh instance of the unpruned module, gets the pruned architecture in place and is
    returned. ``source`` is a folder of ``save``, of which ``into`` also gets the weights, strictly; or a specification
    alone, which leaves the edited layers without weights. Where a module was pruned again and again, ``into`` may also
    be what an earlier time gave. It keeps its device, its type and its mode; a compiled or ``DataParallel`` module
    comes back unwrapped.

    **A cascade.** ``into`` are fresh instances of its members, cheapest first, each as it was before anything was cut.
    They stay as they are: the `Cascaded` that is returned has copies, in eval mode, on the device of the first.

    Raises UserError, and leaves ``into`` as it is, if the folder is broken or the two do not belong together.
    """
    if isinstance(source, str | Path) and record_in(Path(source)).get("kind") == KIND:
        return restore_cascaded(Path(source), into)
    return restore_pruned(source, into)
