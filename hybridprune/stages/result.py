"""The end of a run: the selected network, its figures on validation and test, and result.json."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import torch

from hybridprune.config import PruneConfig, RlConfig, SpConfig, identity, to_json
from hybridprune.engine.evaluate import Readings
from hybridprune.engine.parallel import share_weights
from hybridprune.engine.progress import Progress
from hybridprune.errors import RunFailed, UserError
from hybridprune.measure.cost import count
from hybridprune.measure.effective import count_weights, effective_sparsity
from hybridprune.models.routed import RoutedNetwork
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.processes import count as processes
from hybridprune.processes import is_first, json_from_first
from hybridprune.pruning.within_time import told
from hybridprune.stages.console import say
from hybridprune.stages.members import JOINED
from hybridprune.stages.parent import Parent
from hybridprune.stages.setup import C, StageSetup, unpruned
from hybridprune.store.files import sha256
from hybridprune.store.provenance import hardware, versions
from hybridprune.store.run_folder import FORMAT, RunFolder, RunSpec
from hybridprune.store.validation_logits import ValidationLogits
from hybridprune.store.weights import load_weights


def load_selected(net: RoutedNetwork, run: RunFolder) -> None:
    """Give ``net`` the run's selected weights, in all processes."""
    if is_first():
        load_weights(net, run.selected_file)
    share_weights(net)


def finish(
    run: RunFolder, setup: StageSetup[C], progress: Progress, epochs: int, extra: Mapping[str, Any]
) -> dict[str, Any]:
    """Save the network that is shipped, measure it on validation and, once, on test, and write result.json.

    Before that, of a run that can be a member of a cascade, its logits for the validation images are saved. ``setup``
    holds that network and its specification, ``extra`` what only this stage has to say. All that is done between
    ``load_selected`` and here works on the network in memory only: a run that is killed in between and resumed does it
    again, from the same weights. Raises RunFailed if the network is not finite on the validation images.
    """
    spec, config, net, images, parent = setup.spec, setup.config, setup.net, setup.images, setup.parent
    run.save_weights(run.model_file.name, net)
    cost = count(net, spec.input_size)
    stored = json_from_first(
        lambda: {"stored_bytes": run.model_file.stat().st_size, "model_sha256": sha256(run.model_file)}
    )
    joins = spec.stage in JOINED
    answers = Readings.of(net, images.validation(), keep_logits=joins)
    validation = answers.summary(cost)
    if not math.isfinite(validation["routed"]["loss"]):
        raise RunFailed(
            "the network is not finite on some validation images; start anew with a lower --lr (now "
            f"{config.optim.lr}) and another --exp_name"
        )
    if joins:
        said = answers.always_on
        ValidationLogits(said.logits, said.labels, images.split.validation).save(run, spec, stored["model_sha256"])
    test = Readings.of(net, images.test()).summary(cost)
    for split, figures in (("validation", validation), ("test", test)):
        if not _finite(figures):
            say(f"warning: the network is not finite on some {split} images: their answers are wrong, the loss is null")
    result = {
        "format": FORMAT,
        "stage": spec.stage,
        "run_id": spec.run_id,
        "exp_name": config.run.exp_name,
        "seed": config.run.seed,
        "group": _group(config, parent),
        "dataset": {"name": spec.dataset, "digest": spec.dataset_digest, "classes": len(spec.class_names)},
        "network": {"name": spec.network.network, "label": spec.network.label},
        "params": {"backbone": cost.backbone_params, "gates": cost.gate_params},
        "macs": {"backbone": cost.backbone_macs, "gates": sum(cost.gate_macs)},
        "dense": setup.dense,
        **_effective_sparsity(net, spec, images.device),
        **stored,
        "test": test,
        "validation": validation,
        "epochs": epochs,
        "selected_epoch": progress.best_epoch,
        "selected_averaged": progress.best_averaged,
        "seconds": round(progress.seconds, 1),
        "versions": versions(),
        "hardware": hardware(images.device),
        "precision": {
            "training": config.optim.precision,
            "tf32": config.optim.tf32 and images.device.type == "cuda",
            "figures": "fp32",
        },
        "processes": processes(),
        "config": to_json(config),
        "parent": {
            "path": str(parent.run.path),
            "run_id": parent.spec.run_id,
            "model_sha256": parent.result["model_sha256"],
        }
        if parent
        else None,
        **extra,
    }
    run.write_json("result.json", result)
    return result


def _effective_sparsity(net: RoutedNetwork, spec: RunSpec, device: torch.device) -> dict[str, float]:
    """Effective sparsity of the backbone, every block executed, against the unpruned one; a cascade has none."""
    if not isinstance(net, GatedNetwork):
        return {}
    example = torch.zeros(1, 3, spec.input_size, spec.input_size, device=device)
    dense = count_weights(unpruned(spec.gated).backbone)
    return {"effective_sparsity": effective_sparsity(net.backbone, example, dense)}


def _group(config: SpConfig | PruneConfig | RlConfig, parent: Parent | None) -> str:
    """A digest of what repeated runs share: everything but the seed, through all generations."""
    shared = {key: value for key, value in to_json(config).items() if key in identity(config) - {"seed"}}
    lineage = parent.result["group"] if parent else ""
    return hashlib.sha256((json.dumps(shared, sort_keys=True) + lineage).encode()).hexdigest()[:16]


def show_result(run: RunFolder, result: dict[str, Any]) -> dict[str, Any]:
    """Print a finished run's figures, and return its ``result``; of several processes, the first one prints.

    Raises UserError if the result has other figures.
    """
    if is_first():
        try:
            lines, how = _lines(result), "finished" if _finite(result["test"]) else "ended, not finite on some images"
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"{run.path / 'result.json'}: not a run's result ({reason}); restore the file") from error
        print("\n".join([f"{how}: {run.path}", *lines]))
    return result


def _finite(figures: Mapping[str, Any]) -> bool:
    """Whether a network gave numbers; in a file, null stands for a loss that is none."""
    losses = [figures[reading].get("loss", 0.0) for reading in ("always_on", "routed")]
    return all(loss is not None and math.isfinite(loss) for loss in losses)


def _lines(result: Mapping[str, Any]) -> list[str]:
    """The lines that tell a result; raises what comes of a file that holds something else."""
    test, dense, backbone = result["test"], result["dense"], result["macs"]["backbone"]
    routed, rates = test["routed"], [float(rate) for rate in test["routed"]["block_rates"]]
    members = result.get("members", [])
    lines = [
        f"  all {'members' if members else 'blocks'} executed: test accuracy {test['always_on']['accuracy']:.2%}, "
        f"{backbone * 2 / 1e9:.4f} GFLOPs ({backbone / dense['macs']:.1%} of dense)",
        f"  routed by the gates: test accuracy {routed['accuracy']:.2%}, expected "
        f"{routed['expected_macs'] * 2 / 1e9:.4f} GFLOPs ({routed['expected_macs'] / dense['macs']:.1%} of dense), "
        f"mean execution rate {routed['mean_rate']:.3f}",
    ]
    if (target := result.get("target")) is not None:
        price = target.get("price")  # runs of older versions do not say
        lines.append(
            f"  budget: {target['macs'] * 2 / 1e9:.4f} GFLOPs, of which the validation images take "
            f"{target['validation_macs'] / target['macs']:.1%}; threshold {target['threshold']:.4g}"
            + ("" if price is None else f", final alpha {price:.4g}")
        )
    if (latency := result.get("latency")) is not None:
        lines.append(f"  {told(latency)}")
    if (dead := result.get("effective_sparsity")) is not None:  # runs of older versions do not say
        lines.append(f"  effective sparsity: {dead:.1%} of the dense network's weights are on no live path")
    if (training := result.get("training")) is not None:
        before, after = training["accuracy_before"], training["accuracy_trained"]
        found = "not finite" if after is None else f"{after:.2%}"
        kept = "the trained members are kept" if training["kept"] else "the members stay as they were"
        lines.append(f"  {kept}: accuracy on validation {before:.2%} as they were, {found} trained")
    if members:
        ahead = {name: 100 * float(value) for name, value in result["cascade"]["ahead"].items()}
        best = members[result["cascade"]["best"]]["label"]
        lines.append(
            f"  on validation {ahead['mean']:+.2f} [{ahead['low']:+.2f}, {ahead['high']:+.2f}] points over the best "
            f"single member within the budget ({best}); each half by gates fitted on the other"
        )
    if rates:
        lines.append(f"  execution rates: {' '.join(f'{rate:.2f}' for rate in rates)}")
    return lines
