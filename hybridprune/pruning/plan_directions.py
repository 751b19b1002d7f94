"""Directions of layers: decompose, allocate ranks, rebuild, refit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hybridprune.config import CurvatureOptions, CutOptions
from hybridprune.errors import UserError
from hybridprune.models.copies import copied
from hybridprune.pruning.budget.space import pick
from hybridprune.pruning.directions.layer_forms import DENSE, Ranks
from hybridprune.pruning.directions.layers import survey
from hybridprune.pruning.directions.refit import refit
from hybridprune.pruning.directions.space import DirectionCell, direction_space
from hybridprune.pruning.directions.surgery import apply_ranks
from hybridprune.pruning.left_alone import NEVER, READ
from hybridprune.pruning.measure import measure_factors, measure_moments
from hybridprune.pruning.measured import refuse_nothing_left, unmeasured_layers
from hybridprune.pruning.method import DirectionMethod
from hybridprune.pruning.plan import Proposal
from hybridprune.pruning.subject import Pairs, Subject
from hybridprune.pruning.trial import read_without_call, replaceable


def propose_directions(
    subject: Subject, method: DirectionMethod, allocation: str, options: CutOptions, curvature: CurvatureOptions
) -> Proposal:
    """Score all directions of the network; UserError if no layer is left to prune."""
    found = survey(subject.model, lambda: subject.run(subject.model, subject.example), subject.exclude)
    layers, failed = replaceable(subject, found.layers)
    idle = [name for name, reason in found.left_alone.items() if reason == NEVER]
    read = read_without_call(subject.model, subject.run, subject.example, idle)
    left_alone = {**found.left_alone, **failed, **dict.fromkeys(read, READ)}
    if not layers:
        raise UserError(
            "--exclude: no layer is left to prune; the network needs plain convolutions or linear layers that match "
            f"none of {', '.join(subject.exclude) or 'no pattern'}"
        )
    leaves = {layer.name: layer.leaf for layer in layers}
    factors, missing = measure_factors(subject, leaves, curvature)
    plain, means = factors, None
    if curvature.use_bias:
        means = {name: layer.input_mean for name, layer in factors.items()}
        factors = {name: layer.centred() for name, layer in factors.items()}
    needed = method.moments(curvature.correct_eigenvalues)
    moments, unseen = measure_moments(subject, leaves, factors, means, needed, curvature)
    unmeasured = {**missing, **unmeasured_layers(plain, moments), **unseen}
    layers = [layer for layer in layers if layer.name not in unmeasured]
    if not layers:
        refuse_nothing_left(options.method, unmeasured)
    decompositions = {
        x.name: method.decompose(x.weight, factors[x.name], moments.get(x.name), curvature.regularization)
        for x in layers
    }
    space = direction_space(
        layers,
        decompositions,
        subject.cost,
        limit=options.prune_ratio_limit,
        normalize=options.normalize,
        allow_increase=options.allow_increase,
        multiple=options.rank_multiple,
    )

    def ranks(kept: Sequence[int]) -> dict[str, Ranks]:
        return {cell.name: cell.ranks(pick(cell, kept)) for cell in space.cells if isinstance(cell, DirectionCell)}

    def apply(kept: Sequence[int]) -> None:
        planned = ranks(kept)
        reference = copied(subject.model) if options.refit_images else subject.model
        sweeps = options.hooi_sweeps if options.decomp_method == "tucker" else 0
        apply_ranks(subject.model, layers, decompositions, planned, sweeps)
        if options.refit_images:
            cut = [x for x in layers if planned[x.name] not in (x.form, DENSE)]
            # The metric is that of the whole layer's output, which a layer cut before has in other coordinates.
            metrics = {x.name: factors[x.name].gradient_factor for x in cut if x.rotate_out is None}
            images = _Inputs(subject.sample(options.refit_images, "refit"))
            refit(subject.model, reference, [x.name for x in cut], images, subject.run, metrics)

    def describe(kept: Sequence[int]) -> list[str]:
        return [
            f"{name}: input rank {r.rank_in or 'full'}, output rank {r.rank_out or 'full'}"
            for name, r in ranks(kept).items()
        ]

    return Proposal(space, allocation, apply, describe, left_alone={**left_alone, **unmeasured})


@dataclass(frozen=True)
class _Inputs:
    """What the network reads of each batch, as often as it is gone through."""

    pairs: Pairs

    def __iter__(self) -> Iterator[Any]:
        return (inputs for inputs, _ in self.pairs)
