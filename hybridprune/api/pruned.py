# pyright: strict, reportUnnecessaryIsInstance=false
"""The result of ``prune``: a module with its edits, by which it is put together again elsewhere."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn
from torch.nn.parameter import is_lazy

from hybridprune.api.saved_folder import SPEC, WEIGHTS, saved_folder
from hybridprune.api.summary import LayerSummary, summary_table
from hybridprune.engine.plain import unwrapped
from hybridprune.errors import UserError
from hybridprune.json_text import read_json, texts_at, value_at
from hybridprune.models.copies import copied
from hybridprune.models.edits import Edit, apply_edits, edit_from_json
from hybridprune.models.origin import note_origin, origin_of
from hybridprune.pruning.budget.space import Cost
from hybridprune.pruning.within_time import check_record, told
from hybridprune.store.weights import check_shapes, load_tensors, read_tensors
from hybridprune.tables import Table


@dataclass(frozen=True)
class PrunedSpec:
    """The record of a pruning: edits that repeat it on a fresh instance, and the cost before and after."""

    edits: tuple[Edit, ...]
    macs: int
    """Of one image."""
    params: int
    dense_macs: int
    dense_params: int
    left_alone: Mapping[str, str] = dataclasses.field(default_factory=dict[str, str])
    """Layers with weights that nothing was cut from because nothing could be, by name, each with the reason."""
    latency: Mapping[str, Any] | None = None
    """How a budget of time is met: ``target``, ``target_ms``, ``predicted_ms``, ``realised_ms`` and ``dense_ms`` of a
    batch, whether it is ``met``, and how it was measured; None without such a budget."""
    layers: tuple[LayerSummary, ...] = dataclasses.field(default=(), repr=False, compare=False)
    """For `Pruned.summary`, layer by layer. Known where ``prune`` has just run; it is not saved."""

    def to_json(self) -> dict[str, object]:
        """A plain dictionary, without the layers."""
        saved = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "layers"}
        if self.latency is None:
            del saved["latency"]
        return {**saved, "edits": [edit.to_json() for edit in self.edits], "left_alone": dict(self.left_alone)}

    @staticmethod
    def read(path: Path) -> PrunedSpec:
        """The specification that ``save`` wrote; UserError if it is missing or broken."""
        try:
            record = read_json(path)
            edits = tuple(map(edit_from_json, value_at(record, "edits", list)))
            for name in ("macs", "params", "dense_macs", "dense_params"):
                value_at(record, name, int, low=0)
            reasons = value_at({"left_alone": {}, **record}, "left_alone", dict)
            texts_at({"reasons": list(reasons.values())}, "reasons")
            if "latency" in record:
                check_record(value_at(record, "latency", dict))
            if "layers" in record:
                raise ValueError("a key layers, which is never saved")
            known: dict[str, Any] = {**record, "edits": edits}
            return PrunedSpec(**known)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not a pruned module's specification ({error}); save it again") from error


class Pruned(NamedTuple):
    """A pruned copy of a module and what was done to it."""

    module: nn.Module
    spec: PrunedSpec

    @property
    def left_alone(self) -> Mapping[str, str]:
        """Layers with weights that nothing was cut from because nothing could be, by name, each with the reason."""
        return self.spec.left_alone

    def summary(self) -> None:
        """Print `table`, and above it what was cut in all."""
        print(self, self.table().plain(), sep="\n\n")

    def table(self) -> Table:
        """The layers before and after pruning, a row each, and the totals.

        Kind and form (dense, the sides that have rotations, or branches) are those of now. Ranks are inputs x outputs
        of the layer's core: its channels where a side has no rotation. MACs are those of one image. The expected loss
        is the rise in nats that the method has expected of the layer's cut alone, before recalibration and training;
        methods whose scores are in other units leave it out. A module that was not pruned just now has the totals
        alone.
        """
        spec = self.spec
        return summary_table(spec.layers, Cost(spec.dense_macs, spec.dense_params), Cost(spec.macs, spec.params))

    def __str__(self) -> str:
        spec = self.spec
        figures = (("MACs", spec.macs, spec.dense_macs), ("parameters", spec.params, spec.dense_params))
        costs = ", ".join(
            f"{after:,} of {before:,} {what}" + (f" ({after / before:.1%})" if before else "")
            for what, after, before in figures
        )
        cut = len({edit.layer for edit in spec.edits})
        time = "" if spec.latency is None else f"; {told(spec.latency)}"
        changed = f"{cut} layers changed, {len(spec.left_alone)} left alone"
        return f"{type(self.module).__name__}, pruned: {costs}; {changed}{time}"

    def __repr__(self) -> str:
        return f"<{self}>"

    def _repr_html_(self) -> str:
        """The same and the table, for notebooks."""
        return f"<p>{html.escape(str(self))}</p>{self.table().html()}"


def restore_pruned(source: PrunedSpec | str | Path, into: object) -> nn.Module:
    """``into`` with the architecture and the weights of a pruned module; see `restore`."""
    if not isinstance(into, nn.Module):
        raise UserError(f"into: is a {type(into).__name__}; give a fresh instance of the unpruned module")
    into = unwrapped(into)
    spec = source if isinstance(source, PrunedSpec) else PrunedSpec.read(saved_folder(source) / SPEC)
    named = "the specification " if isinstance(source, PrunedSpec) else f"{source}: "
    if any(map(is_lazy, into.parameters())):
        raise UserError(f"into: {type(into).__name__} has lazy layers without a shape; run it on a batch first")
    origin, trial = origin_of(into), copied(into).to("meta")
    try:
        apply_edits(trial, spec.edits)
    except ValueError as error:
        raise UserError(f"{named}belongs to another kind of module ({error}); give an instance of that") from error
    weights = None
    if isinstance(source, str | Path):
        file = Path(source) / WEIGHTS
        weights = file, read_tensors(file)
        check_shapes({name: list(tensor.shape) for name, tensor in weights[1].items()}, trial, file)
    apply_edits(into, spec.edits)
    if weights is not None:
        load_tensors(into, weights[1], weights[0])
    note_origin(into, dataclasses.replace(origin, edits=spec.edits))
    return into
