"""Checkpoints of public collections under the names that their layers have here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from hybridprune.config.networks import NETWORKS
from hybridprune.models.torchvision_nets import published_tensors
from hybridprune.models.vgg import CONVOLUTIONS

# torchvision's names of a ResNet, which most collections share, and their other names of the classifier and shortcuts.
_BLOCK = re.compile(r"layer(\d+)\.(\d+)\.(.+)")
_LAYERS = {"conv1": "conv", "bn1": "bn", "fc": "classifier", "linear": "classifier"}
_OWN_BLOCK = re.compile(r"blocks\.(\d+)\.(\w+)\.")
_IMAGENET = re.compile(r"resnet(\d+)-gated")
_SHORTCUT = re.compile(r"(?:downsample|shortcut)\.([01]\.)")
_NUMBERED = re.compile(r"features\.(\d+)\.(.+)")
_CLASSIFIER = re.compile(r"(classifier\.\d+)\.(.+)")


class Renamed(NamedTuple):
    """A checkpoint's tensors under a network's own names."""

    tensors: dict[str, Tensor]
    left_out: list[str]
    """Modules of the checkpoint that the network does not have: auxiliary heads, a classifier of several layers."""


def own_names(network: str, depth: int | None, width: int | None, tensors: Mapping[str, Tensor]) -> Renamed:
    """The ``tensors`` of a checkpoint under the names of ``network``; those that are its own already stay.

    Raises ValueError, in words for the user, if they are of another depth, width or kind.
    """
    if network.startswith("torchvision:"):
        return Renamed(*published_tensors(network.partition(":")[2], tensors))
    if gated := _IMAGENET.fullmatch(network):
        return Renamed(_imagenet_resnet(tensors, int(gated[1])), [])
    if network not in ("resnet", "vgg"):
        return Renamed(dict(tensors), [])
    assert depth is not None and width is not None, "of these, both are known"
    return Renamed(_cifar_resnet(tensors, depth, width), []) if network == "resnet" else _vgg(tensors, depth, width)


class _ResNet(NamedTuple):
    """The checkpoint of a ResNet, under the names of ours."""

    tensors: dict[str, Tensor]
    stages: int
    """0 where names do not tell: they have been ours."""
    blocks: int
    bottleneck: bool


def _read_resnet(tensors: Mapping[str, Tensor]) -> _ResNet:
    found = {name: match for name in tensors if (match := _BLOCK.fullmatch(name))}
    places = sorted({(int(match[1]), int(match[2])) for match in found.values()})
    block = {place: index for index, place in enumerate(places)}
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if match := found.get(name):
            inner = _SHORTCUT.sub(r"projection.\1", match[3])
            renamed[f"blocks.{block[int(match[1]), int(match[2])]}.{inner}"] = tensor
        else:
            layer, dot, parameter = name.partition(".")
            renamed[f"{_LAYERS.get(layer, layer) if places else layer}{dot}{parameter}"] = tensor
    layers = [match for name in renamed if (match := _OWN_BLOCK.match(name))]
    return _ResNet(
        renamed,
        stages=places[-1][0] if places else 0,
        blocks=len({match[1] for match in layers}),
        bottleneck=any(match[2] == "conv3" for match in layers),
    )


def _cifar_resnet(tensors: Mapping[str, Tensor], depth: int, width: int) -> dict[str, Tensor]:
    found = _read_resnet(tensors)
    if found.stages > 3:
        raise ValueError(f"has {found.stages} stages of blocks, resnet has 3; use resnet18-gated or its like")
    if found.bottleneck:
        raise ValueError("has bottleneck blocks, resnet has basic ones; use another checkpoint")
    if not found.blocks:
        return found.tensors
    _check_size("resnet", 2 * found.blocks + 2, found.tensors.get("conv.weight"), depth, width)
    for first in (found.blocks // 3, 2 * found.blocks // 3):
        if not any(name.startswith(f"blocks.{first}.projection.") for name in found.tensors):
            raise ValueError(
                "has shortcuts without weights (option A: subsampled, padded with zeros), those of resnet are 1x1 "
                "convolutions (option B); use another checkpoint"
            )
    return found.tensors


def _imagenet_resnet(tensors: Mapping[str, Tensor], depth: int) -> dict[str, Tensor]:
    found = _read_resnet(tensors)
    if found.stages not in (0, 4):
        raise ValueError(f"has {found.stages} stages of blocks, resnet{depth}-gated has 4; use --network resnet")
    theirs = (3 if found.bottleneck else 2) * found.blocks + 2
    if found.blocks and theirs != depth:
        twin = f"resnet{theirs}-gated"
        remedy = f"give --network {twin}" if twin in NETWORKS.built_in else "use another checkpoint"
        raise ValueError(f"is of a ResNet-{theirs}, not of a ResNet-{depth}; {remedy}")
    return found.tensors


def _vgg(tensors: Mapping[str, Tensor], depth: int, width: int) -> Renamed:
    features = {name: match for name in tensors if (match := _NUMBERED.fullmatch(name))}
    places = sorted(int(m[1]) for name, m in features.items() if m[2] == "weight" and tensors[name].ndim == 4)
    if not places:
        return Renamed(dict(tensors), [])
    _check_size("vgg", len(places) + 3, tensors[f"features.{places[0]}.weight"], depth, width)
    if any(f"features.{place + 1}.running_mean" not in tensors for place in places):
        raise ValueError("has no BatchNorm behind its convolutions, vgg has; use another checkpoint")
    stages = enumerate(CONVOLUTIONS[depth], start=1)
    labels = [f"{stage}_{index}" for stage, count in stages for index in range(1, count + 1)]
    layers = {place: f"conv{label}" for place, label in zip(places, labels, strict=True)}
    layers |= {place + 1: f"bn{label}" for place, label in zip(places, labels, strict=True)}
    renamed = {f"features.{layers.get(int(m[1]), m[1])}.{m[2]}": tensors[name] for name, m in features.items()}
    for label in labels:  # a bias in front of a BatchNorm is part of the mean that it subtracts
        bias = renamed.pop(f"features.conv{label}.bias", None)
        if bias is not None:
            renamed[f"features.bn{label}.running_mean"] = renamed[f"features.bn{label}.running_mean"] - bias
    classifier = {name: match for name in tensors if (match := _CLASSIFIER.fullmatch(name))}
    layers_there = sorted({match[1] for match in classifier.values()})
    if len(layers_there) == 1:
        renamed |= {f"classifier.{match[2]}": tensors[name] for name, match in classifier.items()}
    renamed |= {name: tensor for name, tensor in tensors.items() if name not in features and name not in classifier}
    return Renamed(renamed, layers_there if len(layers_there) > 1 else [])


def _check_size(network: str, depth: int, first: Tensor | None, wanted_depth: int, wanted_width: int) -> None:
    """ValueError, with the flags to give, if the checkpoint of this depth and first layer is of another size."""
    width = wanted_width if first is None or first.ndim != 4 else first.shape[0]
    if (depth, width) != (wanted_depth, wanted_width):
        raise ValueError(
            f"is of a {network} of depth {depth} and width {width}, not of depth {wanted_depth} and width "
            f"{wanted_width}; give --depth {depth} --width {width}"
        )
