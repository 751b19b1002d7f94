"""Hardening: decisions that are the same for (almost) all images are taken once and for all.

It changes decisions, so it is an option, and what it does to validation images is reported.

A removed gate of `RecurrentGate` takes its cell step with it, since that is nearly all it costs; the gates behind it
then go on from an older state and may decide otherwise. With ``keep_state`` it goes on listening instead: no other
decision changes, and little is saved but for blocks that are gone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from hybridprune.deployment.choice import Choice
from hybridprune.deployment.gates import CellGate
from hybridprune.deployment.network import DeployedNetwork
from hybridprune.models.backbone import ResidualBlock
from hybridprune.models.replace import replace_module


@dataclass(frozen=True)
class Harden:
    """Limits of the execution rate beyond which a gate's decision is fixed."""

    never: float = 0.0
    """A block that at most this share of the validation images executes is removed."""
    always: float = 1.0
    """A gate that at least this share of the validation images passes is removed; its block always runs."""
    unprofitable: bool = False
    """Whether a gate is removed, too, if asking it and obeying takes longer than running its block for every image."""
    keep_state: bool = False
    """Whether removed recurrent gates go on feeding the state of those behind."""


def fix_certain(net: DeployedNetwork, rates: Sequence[float], harden: Harden, image: Tensor) -> dict[str, str]:
    """Fix, in place, the decisions that are (almost) always the same; the reasons, by the block's number.

    ``rates``: execution rates of the gated blocks; ``image [1, 3, H, W]``: any.
    """
    reasons: dict[str, str] = {}
    for i, rate in enumerate(rates, start=1):
        if rate <= harden.never:
            reasons[str(i)] = f"removed, {rate:.4f} of the images execute it"
            fix_step(net, i, "skip", harden.keep_state, image)
        elif rate >= harden.always:
            reasons[str(i)] = f"gate removed, {rate:.4f} of the images pass it"
            fix_step(net, i, "run", harden.keep_state, image)
    drop_listeners(net)
    return reasons


def fix_dear(net: DeployedNetwork, blocks: Mapping[str, Choice], harden: Harden, image: Tensor) -> dict[str, str]:
    """Run the blocks for every image for which that was found to be the fastest, in place; the reasons."""
    reasons = {
        name: "gate removed, it costs more than it saves" for name, each in blocks.items() if each.chosen == "run"
    }
    for name in reasons:
        fix_step(net, int(name), "run", harden.keep_state, image)
    drop_listeners(net)
    return reasons


@torch.no_grad()
def fix_step(net: DeployedNetwork, index: int, action: Literal["run", "skip"], keep_state: bool, image: Tensor) -> None:
    """Fix block ``index`` in place: it is executed for every image or none, whatever its gate says."""
    step = net.step(index)
    step.action = action
    if keep_state and isinstance(step.gate, CellGate):
        step.gate.score = None
    else:
        step.gate = None
    if action == "skip":
        x = net.backbone.stem(image)
        for i in range(index):
            x = cast(ResidualBlock, net.step(i).block).skip(x) if net.step(i).action == "skip" else net.step(i).block(x)
        _strip(step.block, x)


def drop_listeners(net: DeployedNetwork) -> None:
    """Remove the gates that nobody reads: those behind the last that decides."""
    last = max((i for i in range(len(net.steps)) if net.step(i).decides), default=0)
    for i in range(last + 1, len(net.steps)):
        net.step(i).gate = None


def _strip(block: nn.Module, x: Tensor) -> None:
    """Remove the layers that ``block.skip(x)`` does not need."""
    used: set[int] = set()

    def note(module: nn.Module, args: tuple[Any, ...]) -> None:
        used.add(id(module))

    leaves = {name: module for name, module in block.named_modules() if name and not list(module.children())}
    with ExitStack() as stack:
        for module in leaves.values():
            stack.enter_context(module.register_forward_pre_hook(note))
        cast(ResidualBlock, block).skip(x)
    for name, module in leaves.items():
        if id(module) not in used:
            replace_module(block, name, nn.Identity())
