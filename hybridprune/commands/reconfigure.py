"""The small network that the masks of a nuspm run leave, without loss: ``hybridprune reconfigure RUN``.

Cuts the masked channels out of the network as it was when its masks were learnt, before any fine-tuning, checks in
double precision that the logits stay the same and that the MACs are those of the masks, and writes a run of stage 2.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import hashlib
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hybridprune.commands.finished_run import FinishedRun, Parser, add_batch_size
from hybridprune.config import CutOptions, DataOptions, PruneConfig
from hybridprune.data import Batch
from hybridprune.engine.evaluate import Readings
from hybridprune.engine.pressure import Drive
from hybridprune.errors import RunFailed, UserError
from hybridprune.measure.cost import NetworkCost, count
from hybridprune.models.edits import edits_between
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.pruning.budget.space import Cost
from hybridprune.pruning.methods.nuspm.masks import attach_masks
from hybridprune.pruning.methods.nuspm.method import MASKED
from hybridprune.pruning.pipeline import CutState, Trainer
from hybridprune.pruning.plan import Plan
from hybridprune.pruning.promise import check_promise
from hybridprune.pruning.sparse_training.masked_reading import fold_masks
from hybridprune.stages.cut_schedule import Cutting
from hybridprune.stages.images import RunImages
from hybridprune.stages.setup import to_device, unpruned
from hybridprune.store.files import sha256, write_folder
from hybridprune.store.run_folder import RunFolder, RunSpec
from hybridprune.store.validation_logits import ValidationLogits
from hybridprune.store.weights import load_weights

CHECKED_IMAGES = 256
TOLERANCE = 1e-10
"""Of the logits, in double precision, relative to the largest."""
GATE_TOLERANCE = 1e-4
"""Of the gates' logits, which gates compute in single precision."""


def main(argv: Sequence[str], prog: str = "python -m hybridprune.reconfigure") -> None:
    """The command."""
    arguments = _parser(prog).parse_args(argv)
    folder = RunFolder.named(arguments.run)
    output = arguments.output or folder.path.with_name(f"{folder.path.name}-reconfigured")
    _check(folder, output)
    run = FinishedRun.load(arguments)
    masked, small, promised = reconfigured(run)
    difference = largest_difference(masked, small, run.batches("validation"))
    spec = folder.read_spec(f"{MASKED}.json")
    spec = dataclasses.replace(
        spec,
        run_id=uuid.uuid4().hex,
        network=dataclasses.replace(spec.gated, edits=edits_between(unpruned(spec.gated), small)),
    )
    cost = count(small, spec.input_size)
    print(f"logits of the masked and of the small network on validation images differ by {difference:.1e} at most")
    print(f"MACs of the masks {promised.macs:,}, of the small network {cost.backbone_macs:,}")
    check_promise(promised, Cost(cost.backbone_macs, cost.backbone_params))
    answers = Readings.of(small, run.batches("validation"), keep_logits=True)
    test = Readings.of(small, run.batches("test")).summary(cost)
    logits = ValidationLogits(answers.always_on.logits, answers.always_on.labels, run.split().validation)
    _write(output, folder, spec, small, cost, {"test": test, "validation": answers.summary(cost)}, logits)
    print(
        f"test accuracy {test['always_on']['accuracy']:.2%} with all blocks executed, "
        f"{cost.backbone_macs / run.dense_macs:.1%} of the dense FLOPs"
    )
    print(f"written: {output}")


def reconfigured(run: FinishedRun) -> tuple[GatedNetwork, GatedNetwork, Cost]:
    """The masked network of a run and the small one, on the run's device, and the cost that the masks leave.

    The small one is cut as stage 2 cuts, after the training that the run has done already. Raises UserError if the
    run's masked network is missing or broken.
    """
    folder = run.run
    spec = folder.read_spec(f"{MASKED}.json")
    try:
        net = to_device(spec.gated.build(), run.device, channels_last=False).eval()
    except ValueError as error:
        raise UserError(f"{folder.path / MASKED}.json: not a run's specification ({error})") from error
    config = PruneConfig(
        cut=CutOptions(method="nuspm", exclude=tuple(folder.read_json("config.json").get("exclude", ()))),
        data=DataOptions(resize=spec.input_size),
    )
    images = RunImages.of(run.dataset, run.split(), config, run.device)
    dense = {name: folder.result(f"dense.{name}", int, low=1) for name in ("macs", "params")}
    pipeline, trained = Cutting.of(config, images, spec.gated, net, dense).pipeline(net), _Trained(folder)
    masks = attach_masks(net, pipeline.target(net, CutState()).groups)
    trained.train(net, 0, CutState(), drive=None)
    masked = copy.deepcopy(net)
    fold_masks(net)
    done = pipeline.cut(trained, net, 0, CutState())
    kept = [max(1, int(masks[units.name].kept.sum())) for units in done.plan.space.sets]
    return masked, done.model, done.plan.space.cost(kept)


@dataclass(frozen=True)
class _Trained(Trainer[GatedNetwork]):
    """A training of masks that a run has done, and after which nothing is trained: the cut loses nothing."""

    folder: RunFolder

    def planned(self, plan: Plan) -> None:
        """Nothing is told: the run has told it."""

    def settle(self, model: GatedNetwork) -> GatedNetwork:
        """The network as it is: its statistics are those of what it computes still."""
        return model

    def train(self, model: GatedNetwork, number: int, state: CutState, drive: Drive | None) -> None:
        """The weights and masks that the training ended with, into the network, in place."""
        load_weights(model, self.folder.path / f"{MASKED}.safetensors")


@torch.no_grad()
def largest_difference(masked: GatedNetwork, small: GatedNetwork, batches: Iterable[Batch]) -> float:
    """The largest difference of the logits on the first images, every block executed, in double precision.

    Raises RunFailed if it is above `TOLERANCE`, or that of the gates' above `GATE_TOLERANCE`.
    """
    one, other = (_doubled(net) for net in (masked, small))
    worst, seen = 0.0, 0
    for batch in batches:
        images = batch.images.double()
        decisions = images.new_ones(len(images), one.num_gates)
        expected, found = one(images, decisions), other(images, decisions)
        scale = max(1.0, float(expected.logits.abs().max()))
        worst = max(worst, float((expected.logits - found.logits).abs().max()))
        gates = (expected.gate_logits - found.gate_logits).abs().max() if one.num_gates else images.new_zeros(())
        if not worst < TOLERANCE * scale or not float(gates) < GATE_TOLERANCE * scale:
            raise RunFailed(
                f"the small network computes other logits than the masked one (they differ by {worst:.1e}, those of "
                f"the gates by {float(gates):.1e}); not written"
            )
        seen += len(images)
        if seen >= CHECKED_IMAGES:
            break
    return worst


def _doubled(net: GatedNetwork) -> GatedNetwork:
    """A copy in eval mode whose backbone computes in double precision; gates do it in single precision always."""
    net = copy.deepcopy(net).eval()
    net.backbone.double()
    return net


def _check(folder: RunFolder, output: Path) -> None:
    """UserError if ``folder`` is no finished nuspm run, or if ``output`` cannot be made."""
    method = folder.read_json("result.json").get("method") if folder.finished else None
    if folder.finished and not (folder.path / f"{MASKED}.safetensors").is_file():
        what = f"a run of --method {method}" if method else "no run of hybridprune prune"
        if method == "nuspm":
            what = f"without its {MASKED}.safetensors; restore the file"
        raise UserError(f"{folder.path}: {what}; reconfigure takes a run of hybridprune prune --method nuspm")
    if output.exists():
        raise UserError(f"--output {output}: exists; nothing is overwritten, name another folder")
    if not output.absolute().parent.is_dir():
        raise UserError(f"--output {output}: there is no folder {output.absolute().parent}; name one in it")


def _write(
    output: Path,
    folder: RunFolder,
    spec: RunSpec,
    net: nn.Module,
    cost: NetworkCost,
    measured: dict[str, Any],
    logits: ValidationLogits,
) -> None:
    """Write the run, whole or not at all."""
    before = folder.read_json("result.json")

    def fill(temporary: Path) -> None:
        run = RunFolder(temporary)
        run.write_json("spec.json", spec.to_json())
        run.save_weights("model.safetensors", net)
        for name in ("config.json", "split.json"):
            run.write_json(name, folder.read_json(name))
        result = {
            **before,
            **measured,
            "run_id": spec.run_id,
            # Not a repetition of the run that it is made from.
            "group": hashlib.sha256(f"reconfigured {before['group']}".encode()).hexdigest()[:16],
            "params": {"backbone": cost.backbone_params, "gates": cost.gate_params},
            "macs": {"backbone": cost.backbone_macs, "gates": sum(cost.gate_macs)},
            "stored_bytes": run.model_file.stat().st_size,
            "model_sha256": sha256(run.model_file),
            "reconfigured_from": {"path": str(folder.path), "run_id": before["run_id"]},
        }
        logits.save(run, spec, result["model_sha256"])
        run.write_json("result.json", result)

    try:
        write_folder(output, fill)
    except OSError as error:
        raise UserError(f"--output {output}: can't be written ({error.strerror}); choose another folder") from error


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = Parser(__doc__, prog, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_batch_size(parser)
    parser.add_argument("--output", metavar="DIR", type=Path, help="new folder of the run (default: RUN-reconfigured)")
    return parser
