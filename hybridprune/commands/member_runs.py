"""The runs below a folder that can be members of a cascade, with their logits for the validation images."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from hybridprune.commands.finished_run import FinishedRun
from hybridprune.engine.evaluate import evaluate
from hybridprune.errors import UserError
from hybridprune.report.records import RunRecord, read_runs
from hybridprune.stages.console import say
from hybridprune.stages.images import read_split
from hybridprune.stages.members import JOINED, difference, in_common
from hybridprune.store.run_folder import RunFolder, RunSpec
from hybridprune.store.validation_logits import FILE, ValidationLogits

LEAST_IMAGES = 4
"""Two for each half: gates are fitted to the one, and judged by the other."""

Answers = Callable[[RunFolder, RunSpec], ValidationLogits]
"""How a run without stored logits gets them."""


@dataclass(frozen=True)
class MemberRun:
    """A finished run of stage 1 or 2: its figures, and its logits for the validation images."""

    run: RunFolder
    spec: RunSpec
    record: RunRecord
    said: ValidationLogits


def member_runs(results: Path, answers: Answers | None) -> list[MemberRun]:
    """All runs below a folder that can be members, cheapest first; a line is said of each that is left out.

    A run without stored logits is asked for its ``answers``, or left out without them. UserError if no run is left, or
    if two of them do not see the same images in the same way.
    """
    records = [record for record in read_runs(results, say) if record.stage in JOINED]
    if not records:
        raise UserError(f"RESULTS {results}: no finished run of hybridprune train or prune; train a network first")
    found: list[MemberRun] = []
    for record in records:
        try:
            found.append(_member(record, answers))
        except UserError as error:
            say(f"left out: {error}")
    if not found:
        raise UserError(f"RESULTS {results}: all {len(records)} runs of stages 1 and 2 are left out, as said above")
    _check_alike(found, results)
    return sorted(found, key=lambda member: member.record.backbone_macs)


def evaluated(arguments: argparse.Namespace) -> Answers:
    """The answers of a run's network now, which are kept in its folder.

    Of the ``arguments`` these are read: network, data_dir, device and batch_size.
    """

    def answers(run: RunFolder, spec: RunSpec) -> ValidationLogits:
        run.refuse_links(FILE)
        given = {**vars(arguments), "run": run.path, "cache_dir": None, "download": False}
        if spec.network.network != arguments.network:  # that of other runs
            given["network"] = None
        finished = FinishedRun.load(argparse.Namespace(**given))
        found = evaluate(finished.net, finished.batches("validation"), "always_on", keep_logits=True)
        said = ValidationLogits(found.logits, found.labels, finished.split().validation)
        try:
            said.save(run, spec, run.result("model_sha256", str))
        except OSError as error:
            raise UserError(f"{run.path / FILE}: can't be written ({error.strerror}); make it writable") from error
        say(f"written: {run.path / FILE}")
        return said

    return answers


def _member(record: RunRecord, answers: Answers | None) -> MemberRun:
    run = RunFolder(record.path.parent)
    spec = run.read_spec()
    said = ValidationLogits.read(run, spec)
    if said is None:
        if answers is None:
            raise UserError(f"{run.path}: has no {FILE}, as runs of older versions have none; --evaluate makes it")
        said = answers(run, spec)
    if not torch.equal(said.ids, read_split(run).validation):
        raise UserError(f"{run.path / FILE}: is of other images than split.json says; remove it and give --evaluate")
    return MemberRun(run, spec, record, said)


def _check_alike(members: Sequence[MemberRun], results: Path) -> None:
    """UserError if two of them could not be joined, whatever they cost, or there are too few images to choose by."""
    first, *others = members
    alike = in_common(first.spec, first.said.ids)
    for other in others:
        what = difference(alike, in_common(other.spec, other.said.ids))
        if what is None and not torch.equal(first.said.labels, other.said.labels):
            what = "labels"
        if what is not None:
            raise UserError(
                f"RESULTS {results}: the {what} of {other.run.path} is not that of {first.run.path}; name a folder of "
                "runs that can be joined"
            )
    if len(first.said.labels) < LEAST_IMAGES:
        raise UserError(
            f"RESULTS {results}: {len(first.said.labels)} validation images are too few to choose by; train with more"
        )
