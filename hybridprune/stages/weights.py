"""The dense checkpoint that stage 1 may start from: our own, a state dict, or one that torchvision publishes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hybridprune.errors import UserError
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.models.spec import NetworkSpec
from hybridprune.models.torchvision_nets import published_tensors
from hybridprune.stages.common import say
from hybridprune.store.weights import load_tensors, read_tensors


def start_from(net: GatedNetwork, spec: NetworkSpec, path: Path) -> None:
    """Load a dense checkpoint, safetensors or a ``torch.save`` of a state dict, into the backbone that ``spec`` names.

    Names may carry the prefixes ``module.`` and ``backbone.``. Of a checkpoint for another number of classes all but
    the classifier is taken, auxiliary heads never are, and the user is told. Raises UserError if it cannot be read
    without executing code, or is of another architecture.
    """
    plain = {name.removeprefix("module.").removeprefix("backbone."): value for name, value in _read(path).items()}
    found = {name: value for name, value in plain.items() if not name.startswith("gate.")}
    architecture, _, name = spec.network.partition(":")
    heads: list[str] = []
    if architecture == "torchvision":
        found, heads = published_tensors(name, found)
    own = net.backbone.state_dict()
    # BatchNorm did not always count its batches: torchvision's checkpoints of ResNets do not.
    counters = {name: value for name, value in own.items() if name.endswith(".num_batches_tracked")}
    other = [name for name in spec.classifier() if name in found and _other_classes(found[name], own[name])]
    load_tensors(net.backbone, {**counters, **found, **{name: own[name] for name in other}}, path)
    if heads:
        say(
            f"--weights {path}: its auxiliary heads ({', '.join(heads)}) are not taken, {name} has none here; if "
            "torchvision published it, it expects rescaled images (transform_input), and training has to adapt it"
        )
    if other:
        say(
            f"--weights {path}: is for {len(found[other[0]])} classes, not {spec.classes}; its classifier "
            f"({', '.join(other)}) is not taken and starts anew"
        )


def _other_classes(there: Tensor, here: Tensor) -> bool:
    """Whether the number of classes, a classifier's first dimension, is all that the tensors differ in."""
    return there.ndim == here.ndim > 0 and there.shape != here.shape and there.shape[1:] == here.shape[1:]


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        tensors: Any = read_tensors(path)
    else:
        try:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many types on a broken archive
            reason = str(error).splitlines()[0]
            raise UserError(f"--weights {path}: not a plain state dict ({reason}); save model.state_dict()") from error
        tensors = tensors.get("state_dict", tensors) if isinstance(tensors, dict) else tensors
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise UserError(f"--weights {path}: holds no state dict; save model.state_dict()")
    return tensors
