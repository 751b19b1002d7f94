"""Stage 3 of a cascade: finished runs are joined, and gates between them are fitted to a budget."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch

from hybridprune.config import Invocation, RlConfig
from hybridprune.data import Dataset
from hybridprune.engine.evaluate import evaluate
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
from hybridprune.routing.stopping import stop_macs
from hybridprune.stages.console import say, show_plan
from hybridprune.stages.flops_budget import budget_of
from hybridprune.stages.images import RunImages
from hybridprune.stages.members import JOINED, difference, in_common
from hybridprune.stages.parent import Parent
from hybridprune.stages.result import finish, show_result
from hybridprune.stages.setup import StageSetup, device_for, placed
from hybridprune.stages.start import open_run
from hybridprune.store.run_folder import RunFolder


def run_cascade(invocation: Invocation[RlConfig]) -> dict[str, Any] | None:
    """Join the members, fit the gates on validation, measure once on test; the result (None for a dry run)."""
    options = invocation.config.cascade
    setup, parents = _setup(invocation)
    budget = budget_of(
        invocation.config.stage, setup.cost, setup.dense["macs"], "the cascade spends", "other --members"
    )
    assert budget is not None
    if invocation.dry_run:
        show_plan(setup.spec, setup.images, setup.cost, [f"gates of {len(parents)} members on {setup.device}"])
        return None
    with open_run(setup) as (folder, setup, _):
        if folder.finished:
            return show_result(folder, folder.read_json("result.json"))
        folder.write_json("split.json", setup.images.split.to_json())
        net = cast(Cascade, setup.net)
        said = _validation_logits(net, setup)
        learned, seed = options.policy == "learned", invocation.config.run.seed
        _, right = cross_fitted(net, said, budget, learned, seed)
        stops = fit(net, said, budget, learned)
        share_weights(net)
        spent = float(said.macs[stops].mean())
        if not met(spent, budget):
            say(f"warning: expected FLOPs are {spent / budget:.1%} of --target_flops: few images tell a threshold")
        extra = {
            "members": [_record(parent) for parent in parents],
            "target": {"macs": budget, "validation_macs": spent, "met": met(spent, budget), "threshold": 0.0},
            "cascade": _gain(said, right, [p.result["macs"]["backbone"] for p in parents], budget),
        }
        return show_result(folder, finish(folder, setup, Progress(best_epoch=0), 0, extra))


def _setup(invocation: Invocation[RlConfig]) -> tuple[StageSetup[RlConfig], list[Parent]]:
    """The cascade and its members, cheapest first; its parent is the dearest one."""
    config = invocation.config
    allow(config.network.network)
    device, dataset = device_for(config), load_images(config.data)
    parents = [_member(path, dataset, config.data.resize) for path in config.cascade.members]
    parents.sort(key=lambda parent: parent.result["macs"]["backbone"])
    _check_alike(parents)
    first, dearest = parents[0].spec, parents[-1]
    network = CascadeSpec(tuple(parent.spec.gated for parent in parents), cast(Answer, config.cascade.answer))
    spec = dataclasses.replace(first, stage="rl", run_id=uuid.uuid4().hex, network=network)
    net = Cascade([always_on(parent.net) for parent in parents], network.classes, network.answer)
    images = RunImages.of(dataset, parents[0].split(), config, device)
    return placed(invocation, spec, images, net, dearest), parents


def _member(path: str, dataset: Dataset, size: int) -> Parent:
    """A finished run; UserError if it is none, or of other images."""
    run = RunFolder.named(Path(path))
    spec = run.read_spec()
    if spec.stage not in JOINED:
        raise UserError(f"--members {path}: is a run of stage {spec.stage}, not of {' or '.join(JOINED)}")
    if spec.dataset_digest != dataset.digest or spec.input_size != size:
        raise UserError(
            f"--members {path}: was trained on other images ({spec.dataset} at {spec.input_size}); give those, by the "
            "data flags of its stage"
        )
    run.result("macs.backbone", int, low=1)
    return Parent.of(run)


def _check_alike(parents: Sequence[Parent]) -> None:
    """UserError if members see images, or are validated, differently, or two of them cost the same."""
    first, alike = parents[0], [in_common(parent.spec, parent.split().validation) for parent in parents]
    for parent, its, before in zip(parents[1:], alike[1:], parents[:-1], strict=True):
        if (what := difference(alike[0], its)) is not None:
            raise UserError(
                f"--members {parent.run.path}: its {what} is not that of {first.run.path}; train both alike"
            )
        if parent.result["macs"]["backbone"] <= before.result["macs"]["backbone"]:
            raise UserError(f"--members {parent.run.path}: costs what {before.run.path} costs; leave one of them out")


@torch.no_grad()
def _validation_logits(net: Cascade, setup: StageSetup[RlConfig]) -> MemberLogits:
    """The members' logits for the validation images."""
    found = [evaluate(member, setup.images.validation(), keep_logits=True) for member in net.members]
    return MemberLogits(torch.stack([each.logits for each in found]), found[0].labels, stop_macs(setup.cost))


def _record(parent: Parent) -> dict[str, Any]:
    """A member in result.json, as a parent is."""
    return {
        "path": str(parent.run.path),
        "run_id": parent.spec.run_id,
        "label": parent.spec.network.label,
        "model_sha256": parent.result["model_sha256"],
        "macs": parent.result["macs"]["backbone"],
    }


def _gain(said: MemberLogits, right: torch.Tensor, macs: Sequence[int], budget: float) -> dict[str, Any]:
    """The estimate on validation, each half by gates fitted on the other, over the best single member within budget."""
    alone, best = said.correct.double().mean(1).tolist(), said.best_alone(macs, budget)
    ahead = paired_bootstrap(right.numpy(), said.correct[best].numpy())
    return {"accuracy": float(right.double().mean()), "alone": alone, "best": best, "ahead": ahead._asdict()}
