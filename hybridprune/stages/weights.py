"""The dense checkpoint that stage 1 may start from: our own, a state dict, or one of a public collection."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from hybridprune.errors import UserError
from hybridprune.models.published import own_names
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.models.spec import NetworkSpec
from hybridprune.stages.console import say
from hybridprune.store.checkpoints import read_state_dict
from hybridprune.store.weights import load_tensors


def start_from(net: GatedNetwork, spec: NetworkSpec, path: Path) -> None:
    """Load a dense checkpoint (`read_state_dict`) into the backbone that ``spec`` names.

    Layers may have torchvision's names, or those of the public collections of CIFAR networks (`own_names`). Of a
    checkpoint for another number of classes, or with a classifier of several layers, all but the classifier is taken,
    auxiliary heads never are, and the user is told. Raises UserError if it cannot be read without executing code, or
    is of another architecture.
    """
    found = {name: value for name, value in read_state_dict(path).items() if not name.startswith("gate.")}
    try:
        found, left_out = own_names(spec.network, spec.depth, spec.width, found)
    except ValueError as error:
        raise UserError(f"--weights {path}: {error}") from error
    own = net.backbone.state_dict()
    classifier = spec.classifier()
    # BatchNorm did not always count its batches: torchvision's checkpoints of ResNets do not.
    counters = {name: value for name, value in own.items() if name.endswith(".num_batches_tracked")}
    other = [name for name in classifier if name in found and _other_classes(found[name], own[name])]
    missing = [name for name in classifier if name not in found] if left_out else []
    anew = {name: own[name] for name in (*other, *missing)}
    load_tensors(net.backbone, {**counters, **found, **anew}, path)
    if missing:
        say(
            f"--weights {path}: its classifier ({', '.join(left_out)}) has several layers, that of {spec.network} has "
            "one; it is not taken and starts anew"
        )
    elif left_out:
        name = spec.network.partition(":")[2]
        say(
            f"--weights {path}: its auxiliary heads ({', '.join(left_out)}) are not taken, {name} has none here; if "
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
