# pyright: strict, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnnecessaryIsInstance=false
"""Training and pruning by the scales of BatchNorms, in memory: for notebooks (protocol of Suteu & Guo 2022, section 4).

Where a run should be resumable, or meet a budget, ``hybridprune prune --method slimming|ucs|rni`` does it.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hybridprune.ambient import isolated, seeded
from hybridprune.api.in_memory import Data, Images
from hybridprune.api.quantile import above_quantile
from hybridprune.config import DataOptions, argument_names, checked_value
from hybridprune.config.concern import Checked
from hybridprune.config.networks import NETWORKS
from hybridprune.config.options import option
from hybridprune.data import EvalBatches
from hybridprune.engine.batchnorm import recalibrate
from hybridprune.engine.device import device_of
from hybridprune.engine.evaluate import evaluate
from hybridprune.engine.finetune import finetune
from hybridprune.engine.modes import kept_modes
from hybridprune.engine.pressure import Drive
from hybridprune.engine.schedule import factor
from hybridprune.errors import UserError
from hybridprune.measure.cost import count_module
from hybridprune.models.sigmoid_norm import SigmoidBatchNorm2d, bound, conclude
from hybridprune.models.spec import NetworkSpec
from hybridprune.models.vgg import VGG
from hybridprune.pruning.budget.space import Cost
from hybridprune.pruning.channels import ChannelGroup, channel_groups, channel_space, remove_channels
from hybridprune.pruning.channels.scores import Statistics
from hybridprune.pruning.channels.scores.scale import bn_scale
from hybridprune.pruning.directions.layers import layer_macs
from hybridprune.pruning.promise import check_promise
from hybridprune.pruning.sparse_training.receding import Setting, receding_drive
from hybridprune.pruning.sparse_training.scale_l1 import ScalePressure, all_scales
from hybridprune.store.seeds import generator, stream_seed

Logs = list[dict[str, Any]]

METHODS = ("rni", "slimming", "ucs")
ALIASES = {"l1": "slimming"}
LEAST = 3
"""Channels that every layer keeps."""
FIRST_SCALE = 0.5
"""Of plain BatchNorms before training: the mean importance of bounded ones."""
STAIR = {"0.5": 0.1, "0.75": 0.01}
"""The schedule of network slimming and its successors: a tenth of lr after half, a hundredth after three quarters."""
WEIGHT_DECAY = 1e-4
SLIMMING_WEIGHT = 1e-5
"""Of the regulariser, in the published comparison with rni."""


@dataclass(frozen=True)
class _Arguments(Checked):
    """The numbers that `train` and `prune_finetune` take, with their ranges."""

    reg_weight: float | None = option(None, "weight of the regulariser", low=0)
    b: float | None = option(None, "shift of the regulariser of rni")
    prune_pc: float = option(0.5, "share of the channels to remove", low=0, high=1)
    epochs: int = option(160, "passes over the training images", low=0)
    lr: float = option(0.1, "learning rate", above=0)
    batch_size: int = option(64, "images per step; BatchNorm needs 2", low=2)
    seed: int = option(0, "of everything that is random", low=0)


_named = argument_names(own=("dataset", "batch_size", "device"), DataOptions=DataOptions)


@_named
def train(
    dataset: Data,
    arch: str,
    method: str,
    reg_weight: float | None = None,
    b: float | None = None,
    epochs: int = 160,
    lr: float = 0.1,
    batch_size: int = 64,
    seed: int = 0,
    device: str = "auto",
) -> tuple[nn.Module, Logs]:
    """Train a network from scratch so that its channels can be ranked by the scales of their BatchNorms.

    SGD with Nesterov momentum 0.9 and weight decay 1e-4; lr falls to a tenth after half of the epochs and to a
    hundredth after three quarters, as published. A tenth of the training images validates (the split is the same for
    every seed and call) and selects the epoch, the later one of equals; the test images are read once, at the end.

    Args:
        dataset: ``cifar10`` or ``cifar100`` (torchvision's files in the folder `data`, fetched if they are missing),
            ``digits`` (embedded, 8 x 8), a ``hybridprune.config.DataOptions`` for other folders, sizes and image
            trees, or a ``hybridprune.data.Dataset``.
        arch: ``vgg16`` (width 64), ``resnet56`` (width 16), or another network, depth and width, like ``resnet20-w8``.
        method: ``rni`` (every BatchNorm bounded, weak importances recede), ``slimming`` or ``l1`` (L1 on the scales;
            only in this module is ``l1`` another name for it), ``ucs`` (no regulariser).
        reg_weight: of the regulariser; ``ucs`` has none. By default that of the published figures: ``rni`` 1e-3 for a
            vgg and 1e-4 for the others, ``slimming`` 1e-5.
        b: ``rni``: shift of the regulariser; by default that of the published figures: 3 for a vgg, 0 for the others.
        device: a torch device, or ``auto`` for a GPU if there is one.

    Returns:
        The network with the selected weights, in eval mode on ``device`` (with ``rni`` its norms are
        `SigmoidBatchNorm2d`), and a record of each epoch. ``logs[0]`` is before training, with ``flops`` (2 x MACs of
        an image) and ``params``; ``logs[-1]`` says ``selected_epoch`` and ``test_accuracy`` too.
    """
    method = _method(method)
    _check(reg_weight=reg_weight, b=b, epochs=epochs, lr=lr, batch_size=batch_size, seed=seed)
    with isolated(stream_seed(seed, "training"), device_of(device, "device")):
        images = Images.of(dataset, batch_size, seed, device, "train")
        net = _network(arch, images, seed)
        flops, params = _cost(net, images)
        drive = None
        if method == "rni":
            norms = [name for name, module in net.named_modules() if isinstance(module, nn.BatchNorm2d)]
            bound(net, norms, generator(seed, "gamma"))
            setting = Setting.published(residual=not isinstance(net, VGG)).or_given(reg_weight, b)
            drive = receding_drive(net, *setting)
        else:
            for scale, _ in all_scales(net):
                nn.init.constant_(scale, FIRST_SCALE)
            if method == "slimming":
                weight = SLIMMING_WEIGHT if reg_weight is None else reg_weight
                drive = Drive(ScalePressure(all_scales(net), weight))
        return net, _fit(net, images, drive, epochs, lr, {"flops": flops, "params": params})


@_named
def prune_finetune(
    model: nn.Module,
    dataset: Data,
    method: str,
    prune_pc: float = 0.5,
    epochs: int = 160,
    lr: float = 0.1,
    batch_size: int = 64,
    seed: int = 0,
    device: str = "auto",
) -> tuple[nn.Module, Logs]:
    """Remove the channels of the smallest scales from a copy of ``model`` and fine-tune it without the regulariser.

    A channel stays if its scale (of bounded norms: its importance) is strictly greater than the ``prune_pc`` quantile
    of all scales or, with ``ucs``, of its layer's; each layer keeps its top 3. What may go are the channels that no sum
    joins: of a VGG all, of a ResNet those behind the first BatchNorm of each block. They really go: FLOPs and
    parameters fall. Bounded norms stay so in fine-tuning, as published: no shift, ten times the learning rate, no
    weight decay. At the end they become plain BatchNorms of the same function, which is what can be deployed and saved.

    Args:
        model: a network of `train`, or any classifier whose channels BatchNorms scale.
        prune_pc: share of the channels, in [0, 1].

    The other arguments and the result are those of `train`; ``logs[0]`` is right after the cut (BatchNorm statistics
    re-estimated) and also has ``flops_before``, ``params_before`` and ``channels``, those left in each layer that could
    lose some. Raises UserError if nothing can be removed.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"model: is a {type(model).__name__}; give a network, such as the first thing train returns")
    method = _method(method)
    _check(prune_pc=prune_pc, epochs=epochs, lr=lr, batch_size=batch_size, seed=seed)
    with isolated(stream_seed(seed, "fine-tuning"), device_of(device, "device")):
        images = Images.of(dataset, batch_size, seed, device, "finetune")
        net = images.place(copy.deepcopy(model))
        _check_outputs(net, images)
        were_bound = [name for name, module in net.named_modules() if isinstance(module, SigmoidBatchNorm2d)]
        conclude(net)
        flops_before, params_before = _cost(net, images)
        channels = _cut(net, images, prune_pc, by_layer=method == "ucs")
        recalibrate(net, images.sample)
        flops, params = _cost(net, images)
        facts = {"flops": flops, "params": params, "flops_before": flops_before, "params_before": params_before}
        bound(net, were_bound, generator(seed, "gamma"))  # exact: their scales are in (0, 1)
        logs = _fit(net, images, receding_drive(net, 0.0, 0.0), epochs, lr, {**facts, "channels": channels})
        conclude(net)
        return net, logs


def _check_outputs(net: nn.Module, images: Images) -> None:
    with torch.no_grad(), kept_modes(net):
        outputs, classes = net.eval()(images.example).shape[1], len(images.dataset.classes)
    if outputs != classes:
        raise UserError(f"model: has {outputs} outputs for {classes} classes; give the data it was trained on")


def _cut(net: nn.Module, images: Images, share: float, by_layer: bool) -> dict[str, int]:
    """Remove channels of ``net``, in place; how many are left in each layer that could lose some."""
    groups = channel_groups(net, _run, images.example, exclude=(), coupled=False)
    if not groups:
        raise UserError("model: has no channels that can go by themselves; give a vgg or a resnet")
    statistics = Statistics(dict(net.named_modules()))
    scores = [_scale(group, statistics) for group in groups]
    kept = above_quantile(scores, share, by_layer=by_layer, least=LEAST)
    before = Cost(*count_module(net, images.example))
    macs = layer_macs(net, lambda: net(images.example))
    space = channel_space(net, groups, scores, macs, before, limit=1.0).space
    left = {group.name: int(mask.sum()) for group, mask in zip(groups, kept, strict=True)}
    remove_channels(net, groups, [(~mask).nonzero().flatten() for mask in kept], _run, images.example)
    check_promise(space.cost(list(left.values())), Cost(*count_module(net, images.example)))
    return left


def _scale(group: ChannelGroup, statistics: Statistics) -> Tensor:
    try:
        return bn_scale(group, statistics)
    except UserError as error:
        raise UserError(f"model: no BatchNorm scales the channels of {group.name}; give a vgg or a resnet") from error


def _fit(net: nn.Module, images: Images, drive: Drive | None, epochs: int, lr: float, facts: Mapping[str, Any]) -> Logs:
    """Train ``net`` in place and leave it with the selected weights, in eval mode."""
    logs: Logs = [{"epoch": 0, "validation_accuracy": _accuracy(net, images.validation), **facts}]
    best = logs[0]["validation_accuracy"], 0, copy.deepcopy(net.state_dict())

    def after_epoch(epoch: int, loss: float) -> None:
        nonlocal best
        found = _accuracy(net, images.validation)
        reached = lr * factor("stair", STAIR, (epoch - 0.5) / epochs)
        logs.append({"epoch": epoch, "lr": reached, "train_loss": loss, "validation_accuracy": found})
        if found >= best[0]:
            best = found, epoch, copy.deepcopy(net.state_dict())

    finetune(
        net,
        images.training,
        epochs=epochs,
        lr=lr,
        device=images.device,
        weight_decay=WEIGHT_DECAY,
        drive=drive,
        schedule=lambda share: factor("stair", STAIR, share),
        after_epoch=after_epoch,
    )
    net.load_state_dict(best[2])
    net.eval()
    logs[-1] |= {"selected_epoch": best[1], "test_accuracy": _accuracy(net, images.test)}
    return logs


def _network(arch: str, images: Images, seed: int) -> nn.Module:
    """A new network called ``arch``, always the same for a seed."""
    named = re.fullmatch(r"([a-z]+)(\d+)(?:-w(\d+))?", str(arch))
    if named is None or named[1] not in NETWORKS.built_in:
        raise UserError(f"arch {arch}: give vgg16, resnet56, or a network, depth and width like resnet20-w8")
    width = int(named[3] or (64 if named[1] == "vgg" else 16))
    spec = NetworkSpec(named[1], int(named[2]), width, len(images.dataset.classes))
    try:
        with seeded(stream_seed(seed, "initialisation")):
            return images.place(spec.build().backbone)
    except UserError as error:  # of a depth that there is not
        raise UserError(f"arch {arch}: {error}") from error


def _method(name: str) -> str:
    method = ALIASES.get(str(name), name)
    if method not in METHODS:
        raise UserError(f"method {name}: must be one of {', '.join(METHODS)}, or l1, which is slimming here")
    return method


def _check(**arguments: object) -> None:
    for name, value in arguments.items():
        checked_value(_Arguments, name, value, name)


def _cost(net: nn.Module, images: Images) -> tuple[int, int]:
    """FLOPs of one image, and parameters."""
    macs, params = count_module(net, images.example)
    return 2 * macs, params


def _accuracy(net: nn.Module, batches: EvalBatches) -> float:
    """Share of the images that are classified right, in eval mode."""
    return evaluate(net, batches).accuracy


def _run(net: nn.Module, images: Tensor) -> Tensor:
    return net(images)
