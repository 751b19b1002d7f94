"""Stages 1 and 2 as commands: every kind of network, gate, precision and cut."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch

from benchmarks.device_cases.case import NETWORK, Case, Values, image_tree, results, resumed, run_stage, stage
from hybridprune.config.methods import METHOD_NAMES

_RESNET = ("--depth", "8", "--width", "4")
_SP: Mapping[str, tuple[str, ...]] = {
    "hard gates": (),
    "soft gates": ("--gating", "soft"),
    "noisy gates": ("--gate_noise", "1", "--label_smoothing", "0.1"),
    "bf16": ("--precision", "bf16"),
    "fp16": ("--precision", "fp16"),
    "contiguous": ("--no-channels_last", "--no-augment"),
}
_NETWORKS: Mapping[str, tuple[str, ...]] = {
    "ff1": ("--network", "resnet", *_RESNET, "--gate", "ff1"),
    "ff2": ("--network", "resnet", *_RESNET, "--gate", "ff2"),
    "preresnet": ("--network", "preresnet", "--depth", "11", "--width", "4", "--bottleneck"),
    "pyramidnet": ("--network", "pyramidnet", *_RESNET, "--pyramid_alpha", "6", "--shakedrop", "0.5"),
    "vgg": ("--network", "vgg", "--depth", "11", "--width", "2"),
}
_CUTS: Mapping[str, tuple[str, ...]] = {
    "distilled, cores only": ("--kd_weight", "0.5", "--fix_rotation"),
    "brought back": ("--back_ratio", "0.2", "--max_iter", "2", "--pool_momentum", "0.5", "--interpolation"),
    "brought back channels": ("--method", "l1", "--back_ratio", "0.2"),
    "soft": ("--gating", "soft", "--gate_noise", "1"),
    "bf16": ("--precision", "bf16"),
    "scratch": ("--method", "l1", "--cut_weights", "scratch"),
    "imitating": ("--method", "l1", "--use_out_dependencies", "--cut_weights", "imitate", "--imitate_epochs", "1"),
}

_TRAINED = ("greg-2", "masksparsity", "nuspm", "rni", "bcnet")
"""Each trains towards its cut in a way of its own."""

_EVERY_4 = ("--nuclear_interval", "4")
"""So that nuspm goes on with what it had computed before."""


def from_files(device: torch.device, dataset: str) -> Values:
    """Stage 1 on a tree of images, in memory or streamed."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        flags = (*NETWORK, "--dataset", dataset, *image_tree(root / "images"))
        return results(run_stage(root / "results", "sp", device, flags))


CASES: Mapping[str, Case] = {
    **{f"sp, {name}": stage("sp", *flags) for name, flags in _SP.items()},
    **{f"sp, {dataset}": partial(from_files, dataset=dataset) for dataset in ("tree", "imagefolder")},
    "sp, resumed": resumed("sp", "--gate_noise", "1", "--precision", "fp16", after=2),
    **{f"prune, {method}, resumed": resumed("prune", "--method", method, *_EVERY_4, after=2) for method in _TRAINED},
    "prune, brought back, resumed": resumed("prune", "--back_ratio", "0.2", after=5),
    **{f"sp, {name}": stage("sp", net=network) for name, network in _NETWORKS.items()},
    **{f"prune, {method}": stage("prune", "--method", method) for method in METHOD_NAMES},
    **{f"prune, {name}": stage("prune", *flags) for name, flags in _CUTS.items()},
    **{f"prune, {name}": stage("prune", net=network) for name, network in _NETWORKS.items()},
}
