"""A deployed network in a folder.

``model.safetensors``, ``report.txt`` (what was done) and ``deploy.json`` (the same and the run's specification).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hybridprune.deployment.batch_splitting import in_one, in_pieces
from hybridprune.deployment.cascade import DeployedCascade, Forked
from hybridprune.deployment.deploy import Deployed
from hybridprune.deployment.fold import fold_into
from hybridprune.deployment.harden import drop_listeners, fix_step
from hybridprune.deployment.layer_variants import apply_forms
from hybridprune.deployment.network import ACTIONS, DeployedNetwork
from hybridprune.errors import UserError
from hybridprune.json_text import read_json, short
from hybridprune.models.architectures import NotNamed
from hybridprune.models.cascade_spec import CascadeSpec
from hybridprune.store.files import remove_leftovers, sha256, write_bytes, write_json
from hybridprune.store.lock import exclusive
from hybridprune.store.run_folder import RunSpec
from hybridprune.store.weights import check_shapes, load_weights, read_shapes, save_weights

FORMAT = 1
FILES = ("model.safetensors", "report.txt", "deploy.json")


def save_deployed(deployed: Deployed, spec: RunSpec, folder: Path) -> None:
    """Write a deployed network of the run that ``spec`` describes, each file atomically, deploy.json last.

    Raises UserError if another process is writing there, or nobody can.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / "model.safetensors"
    with exclusive(folder, f"{folder}: another process is writing it; wait for it, or choose another folder"):
        remove_leftovers(folder)
        save_weights(in_one(deployed.module), weights)
        write_bytes(folder / "report.txt", f"{deployed.report}\n".encode())
        record = {"format": FORMAT, "run": spec.to_json(), "report": deployed.report.to_json()}
        write_json(folder / "deploy.json", {**record, "model_sha256": sha256(weights)})


def load_deployed(folder: str | Path, device: str | torch.device = "cpu") -> tuple[nn.Module, RunSpec]:
    """The module that `save_deployed` wrote and what it expects as input, in eval mode.

    Raises UserError if the folder holds none, or a broken one.
    """
    path, weights = Path(folder) / "deploy.json", Path(folder) / "model.safetensors"
    try:
        record = read_json(path)
        if record["format"] != FORMAT:
            raise ValueError(f"format {short(record['format'])}, this version reads {FORMAT}")
        spec = RunSpec.from_json(record["run"])
        # The header of the weights says whether this is true before memory is taken for it.
        shapes = read_shapes(weights)
        with torch.device("meta"):
            check_shapes(shapes, _rebuilt(spec, record["report"]), weights)
        module, expected = _rebuilt(spec, record["report"]), record["model_sha256"]
        runs = _in_pieces(module, record["report"])
    except NotNamed:
        raise
    except Exception as error:  # whatever a record that is not ours leads to
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: not a deployed network ({reason}); export the run again") from error
    load_weights(module, weights)
    if sha256(weights) != expected:  # of another export that was stopped before its end
        raise UserError(f"{weights}: is not the file that {path} describes; export the run again")
    return runs.requires_grad_(False).to(device).eval(), spec


def _in_pieces(module: nn.Module, report: Mapping[str, Any]) -> nn.Module:
    """The batches, or those of a cascade's members, split as they were."""
    if not isinstance(module, DeployedCascade):
        return in_pieces(module, report.get("piece"))
    return module.with_members(
        [_member_in_pieces(member, each) for member, each in zip(module.members, report["members"], strict=True)]
    )


def _member_in_pieces(member: nn.Module, report: Mapping[str, Any]) -> nn.Module:
    if isinstance(member, Forked):
        return Forked(in_pieces(member.trunk, report["trunk"]["piece"]), in_pieces(member.rest, report["piece"]))
    return in_pieces(member, report["piece"])


def _refold(module: nn.Module, report: Mapping[str, Any]) -> None:
    """Fold ``module`` and give its layers forms, in place, as the report says."""
    for name, layer in report["folded"].items():
        fold_into(module, name, layer, behind=True)
    apply_forms(module, {name: choice["chosen"] for name, choice in report["forms"].items()})
    for name, layer in report["folded_inputs"].items():
        fold_into(module, name, layer, behind=False)


def _refolded(parts: Sequence[nn.Module], report: Mapping[str, Any]) -> nn.Module:
    """A cascade's member, of which these are the parts, folded as its report says."""
    *trunk, rest = parts
    _refold(rest, report)
    if not trunk:
        return rest
    _refold(trunk[0], report["trunk"])
    return Forked(trunk[0], rest)


@torch.no_grad()
def _rebuilt(spec: RunSpec, report: Mapping[str, Any]) -> nn.Module:
    """The deployed architecture: what the report says was done, done again to a fresh network."""
    if isinstance(spec.network, CascadeSpec):
        net = spec.network.build().eval()
        members = [_refolded(parts, each) for parts, each in zip(net.parts(), report["members"], strict=True)]
        return DeployedCascade.of(net, members)
    gated = spec.network.build().eval()
    if not gated.num_gates:
        _refold(gated.backbone, report)
        return gated.backbone
    _refold(gated, report)
    net = DeployedNetwork(gated)
    image = torch.zeros(1, 3, spec.input_size, spec.input_size)
    for i, step in zip(range(1, len(net.steps)), report["steps"][1:], strict=True):
        action, keeps_state = step["action"], step["gate"] == "listens"
        if action in ACTIONS:
            net.step(i).action = action
        elif action in ("run", "skip"):
            fix_step(net, i, action, keeps_state, image)
        else:
            raise ValueError(f"unknown action {short(action)}")
    drop_listeners(net)
    return net
