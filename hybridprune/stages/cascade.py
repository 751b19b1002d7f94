"""Stage 3 of a cascade: finished runs are joined, and gates between them are fitted to a budget."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from hybridprune.config import DataOptions, Invocation, RlConfig
from hybridprune.config.name_list import joined_names
from hybridprune.data import Dataset
from hybridprune.engine.modes import always_on
from hybridprune.engine.parallel import share_weights
from hybridprune.engine.progress import Progress
from hybridprune.engine.run_data import load_images
from hybridprune.errors import UserError
from hybridprune.models.architectures import allow
from hybridprune.models.cascade import Answer, Cascade
from hybridprune.models.cascade_spec import CascadeSpec
from hybridprune.report.bootstrap import paired_bootstrap
from hybridprune.routing.fit_cascade import MemberLogits, cross_fitted, fit
from hybridprune.routing.price import met
from hybridprune.stages.cascade_members import outcome, to_train, train_members, validation_logits
from hybridprune.stages.console import say, show_plan
from hybridprune.stages.flops_budget import budget_of
from hybridprune.stages.images import RunImages
from hybridprune.stages.members import JOINED, difference, in_common
from hybridprune.stages.parent import Parent, subtask_of
from hybridprune.stages.result import finish, show_result
from hybridprune.stages.setup import StageSetup, device_for, placed
from hybridprune.stages.start import open_run
from hybridprune.store.run_folder import RunFolder, RunSpec


def run_cascade(invocation: Invocation[RlConfig]) -> dict[str, Any] | None:
    """Join the members, fit the gates on validation, measure once on test; the result (None for a dry run).

    With ``--train members`` these learn, too, and are kept if the cascade is better on validation.
    """
    config, options = invocation.config, invocation.config.stage
    setup, parents = _setup(invocation)
    trained = to_train(setup, [p.run.path for p in parents]) if options.train == "members" else None
    budget = _budget(setup)
    if trained is not None:
        _budget(trained)
    if invocation.dry_run:
        lines = [f"gates of {len(parents)} members on {setup.device}"]
        if trained is not None:
            steps = len(setup.images.training("members"))
            lines.append(f"{options.epochs} epochs of {steps} steps for the members: {trained.spec.network}")
        show_plan(setup.spec, setup.images, setup.cost, lines)
        return None
    with open_run(setup) as (folder, claimed, _):
        if folder.finished:
            return show_result(folder, folder.read_json("result.json"))
        folder.write_json("split.json", setup.images.split.to_json())
        # A kept trunk may be in the claimed specification, of an earlier start.
        setup = _of_run(setup, claimed.spec)
        learned, seed = config.cascade.policy == "learned", config.run.seed

        def right(said: MemberLogits) -> Tensor:
            return cross_fitted(cast(Cascade, setup.net), said, budget, learned, seed)[1]

        def fitted(of: StageSetup[RlConfig], said: MemberLogits) -> Tensor:
            stops = fit(cast(Cascade, of.net), said, budget, learned)
            share_weights(of.net)
            return stops

        given = said = validation_logits(setup)
        stops, answers = fitted(setup, said), right(said)
        extra: dict[str, Any] = {"members": [_record(parent) for parent in parents]}
        progress = Progress(best_epoch=0)
        if trained is not None:
            trained = _of_run(trained, claimed.spec)
            before = float(answers.double().mean())
            training = train_members(setup, trained, folder, lambda found: float(right(found).double().mean()))
            extra["training"] = outcome(folder, training, before)
            progress = Progress(best_epoch=0, seconds=training.seconds)
            if extra["training"]["kept"]:
                setup, progress, said = trained, training, validation_logits(trained)
                stops, answers = fitted(setup, said), right(said)
            folder.write_json("spec.json", setup.spec.to_json())
        spent = float(said.macs[stops].mean())
        if not met(spent, budget):
            say(f"warning: expected FLOPs are {spent / budget:.1%} of --target_flops: few images tell a threshold")
        extra["target"] = {"macs": budget, "validation_macs": spent, "met": met(spent, budget), "threshold": 0.0}
        extra["cascade"] = _gain(given, answers, [p.result["macs"]["backbone"] for p in parents], budget)
        epochs = 0 if trained is None else options.epochs
        return show_result(folder, finish(folder, setup, progress, epochs, extra))


def _budget(setup: StageSetup[RlConfig]) -> float:
    """The budget in MACs; UserError if these members cannot spend it."""
    trunk = cast(Cascade, setup.net).shares_trunk
    who = f"with --trunk {setup.config.cascade.trunk} the cascade spends" if trunk else "the cascade spends"
    budget = budget_of(setup.config.stage, setup.cost, setup.dense["macs"], who, "other --members")
    assert budget is not None
    return budget


def _of_run(setup: StageSetup[RlConfig], claimed: RunSpec) -> StageSetup[RlConfig]:
    """The setup as that of the run that was claimed."""
    return dataclasses.replace(setup, spec=dataclasses.replace(claimed, network=setup.spec.network))


def _setup(invocation: Invocation[RlConfig]) -> tuple[StageSetup[RlConfig], list[Parent]]:
    """The cascade and its members, cheapest first; its parent is the dearest one."""
    config = invocation.config
    allow(config.network.network)
    device, dataset = device_for(config), load_images(config.data)
    parents = [_member(path, dataset, config.data) for path in config.cascade.members]
    parents.sort(key=lambda parent: parent.result["macs"]["backbone"])
    _check_alike(parents)
    parents[0].check_subtask(config.data.classes)
    first, dearest = parents[0].spec, parents[-1]
    network = CascadeSpec(tuple(parent.spec.gated for parent in parents), cast(Answer, config.cascade.answer))
    spec = dataclasses.replace(first, stage="rl", run_id=uuid.uuid4().hex, network=network)
    net = network.joined([always_on(parent.net) for parent in parents])
    images = RunImages.of(dataset, parents[0].split(), config, device)
    return placed(invocation, spec, images, net, dearest), parents


def _member(path: str, dataset: Dataset, options: DataOptions) -> Parent:
    """A finished run; UserError if it is none, or of other images than ``dataset``, which the ``options`` name."""
    run = RunFolder.named(Path(path))
    spec = run.read_spec()
    if spec.stage not in JOINED:
        raise UserError(f"--members {path}: is a run of stage {spec.stage}, not of {' or '.join(JOINED)}")
    if spec.dataset_digest != dataset.digest or spec.input_size != options.resize:
        raise UserError(
            f"--members {path}: was trained on other images ({spec.dataset} at {spec.input_size}); give those, by the "
            "data flags of its stage"
        )
    run.result("macs.backbone", int, low=1)
    return Parent.of(run)


def _check_alike(parents: Sequence[Parent]) -> None:
    """UserError if members know other classes, see images or are validated differently, or two cost the same."""
    first, alike = parents[0], [in_common(parent.spec, parent.split().validation) for parent in parents]
    for parent, its, before in zip(parents[1:], alike[1:], parents[:-1], strict=True):
        known = [subtask_of(each.run) for each in (parent, first)]
        if known[0] != known[1]:  # told apart from the split, which differs then
            this, other = (f"classes {joined_names(each)}" if each else "all classes" for each in known)
            raise UserError(
                f"--members {parent.run.path}: knows {this}, {first.run.path} {other}; prune both with the same "
                "--classes, or with none"
            )
        if (what := difference(alike[0], its)) is not None:
            raise UserError(
                f"--members {parent.run.path}: its {what} is not that of {first.run.path}; train both alike"
            )
        if parent.result["macs"]["backbone"] <= before.result["macs"]["backbone"]:
            raise UserError(f"--members {parent.run.path}: costs what {before.run.path} costs; leave one of them out")


def _record(parent: Parent) -> dict[str, Any]:
    """A member in result.json, as a parent is."""
    return {
        "path": str(parent.run.path),
        "run_id": parent.spec.run_id,
        "label": parent.spec.network.label,
        "model_sha256": parent.result["model_sha256"],
        "macs": parent.result["macs"]["backbone"],
    }


def _gain(given: MemberLogits, right: Tensor, macs: Sequence[int], budget: float) -> dict[str, Any]:
    """The estimate on validation, each half by gates fitted on the other, over the best member alone within budget.

    The latter is one of those that were ``given``, whose logits and MACs these are: they can be had without training.
    """
    alone, best = given.correct.double().mean(1).tolist(), given.best_alone(macs, budget)
    ahead = paired_bootstrap(right.numpy(), given.correct[best].numpy())
    return {"accuracy": float(right.double().mean()), "alone": alone, "best": best, "ahead": ahead._asdict()}
