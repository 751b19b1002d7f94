"""The first plan of a run of stage 2: what a dry run shows, and what is tried before the first of several runs."""

from __future__ import annotations

import copy
from collections.abc import MutableMapping, Sequence
from typing import Any

from hybridprune.config import Invocation, PruneConfig
from hybridprune.engine.imitation import check_imitation
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.processes import json_from_first
from hybridprune.pruning.excluded import check_excluded
from hybridprune.pruning.method import ChannelMethod
from hybridprune.pruning.methods import find
from hybridprune.pruning.pipeline import CutState, Pipeline
from hybridprune.stages.cut_schedule import Cutting, plan_lines
from hybridprune.stages.lessons import black
from hybridprune.stages.setup import StageSetup
from hybridprune.stages.start import refuse_unfinished

Measurements = MutableMapping[str, MutableMapping[str, Any]]
"""What was measured of parents, by the digest of their weights: for runs that differ in their budgets alone."""


def set_up(invocation: Invocation[PruneConfig]) -> StageSetup[PruneConfig]:
    """The setup of a run; UserError if something that it needs is not there."""
    find(invocation.config.cut.method)  # what cannot be imported is refused before anything is read
    setup = StageSetup.descendant(invocation, "prune", of="sp", also=("prune",))
    check_excluded(setup.gated, invocation.config.cut.exclude)
    if invocation.config.cut.cut_weights == "imitate":
        _check_imitation(setup)
    return setup


def _check_imitation(setup: StageSetup[PruneConfig]) -> None:
    """UserError if a network that is cut by these options cannot learn from its parent."""
    cut = setup.config.cut
    method = find(cut.method)
    coupled = cut.use_out_dependencies or (isinstance(method, ChannelMethod) and method.coupled)
    check_imitation(setup.gated.backbone, black(setup), coupled)


def prepare(
    setup: StageSetup[PruneConfig], measurements: Measurements | None
) -> tuple[Cutting, Pipeline[GatedNetwork]]:
    """The cuts of a run and its phases; ``measurements`` is read and added to, if it is given."""
    parent, kept = setup.parent, None
    if measurements is not None and parent is not None:
        kept = measurements.setdefault(parent.result["model_sha256"], {})
    net = setup.gated
    cutting = Cutting.of(setup.config, setup.images, setup.spec.gated, net, setup.dense, kept)
    return cutting, cutting.pipeline(net)


def first_plan(cutting: Cutting, pipeline: Pipeline[GatedNetwork], net: GatedNetwork) -> list[str]:
    """The plan of the first cut in words, of the network as it is; UserError for what the run itself would refuse."""
    training = pipeline.phases[0].sparse
    if training is not None:
        pipeline.drive(copy.deepcopy(net), training, CutState())
    plan = pipeline.make_plan(net, 0)
    kept, state = pipeline.decide(plan, 0, CutState())
    return plan_lines(plan, kept, state, training is not None)


def try_all(runs: Sequence[Invocation[PruneConfig]], measurements: Measurements) -> None:
    """UserError if one of several runs, of one parent, could not start: nobody shall find that out after the others."""
    setup = set_up(runs[0])
    setups = [StageSetup(run, setup.spec, setup.images, setup.net, setup.cost, setup.parent) for run in runs]
    json_from_first(lambda: [refuse_unfinished(own) for own in setups])
    for own in setups:
        first_plan(*prepare(own, measurements), own.gated)
