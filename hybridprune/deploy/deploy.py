"""From a trained network to the module that is shipped: folded, in the forms that the clock prefers."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hybridprune.deploy.cost import expected_macs
from hybridprune.deploy.fold import fold_inputs, fold_scalings
from hybridprune.deploy.forms import choose_forms
from hybridprune.deploy.network import ACTIONS, DeployedNetwork
from hybridprune.deploy.report import Choice, DeployReport
from hybridprune.measure.latency import Latency, Stopwatch, stopwatch
from hybridprune.models.backbone import ResidualBlock
from hybridprune.models.skipnet import GatedNetwork


class Deployed(NamedTuple):
    """A network for inference and what was done to get it."""

    module: nn.Module
    """Images ``[B, 3, H, W]`` to logits; a `DeployedNetwork` where there are gates."""
    report: DeployReport


@torch.no_grad()
def deploy(
    model: nn.Module,
    example_input: Tensor,
    device: torch.device | str | None = None,
    *,
    rates: Sequence[float] | None = None,
    time: Stopwatch | None = None,
) -> Deployed:
    """A copy of ``model`` that computes the same, faster; ``model`` itself is not changed.

    BatchNorm is folded into the layers before it (or behind, where they do not pad), each factored layer takes the
    form that is fastest on ``device``, each gated block is gathered or blended, whichever is faster, and recurrent
    gates become one matrix product. Nothing of it changes a decision.

    Args:
        model: a gated network or any other module of images.
        example_input: normalised images ``[B, 3, H, W]`` of the batch size, the memory format and, best, the kind that
            will come.
        device: where the module will run; None: where ``example_input`` lies.
        rates: expected execution rate of each gated block; None: as on the example.
        time: how alternatives are timed; None: interleaved, by the clock of the device.
    """
    device = torch.device(device or example_input.device)
    images = example_input.to(device)
    time = time or stopwatch(device)
    module = copy.deepcopy(model).to(device).eval()
    if isinstance(module, GatedNetwork) and module.num_gates:
        decided = module(images, mode="executed").decisions.mean(0).tolist()
        rates = decided if rates is None else list(rates)
        assert len(rates) == module.num_gates
    else:
        assert not rates, "rates of a network without gates"
        rates = []
        module = module.backbone if isinstance(module, GatedNetwork) else module
    macs_before, params_before = expected_macs(module, images[:1], rates), _parameters(module)

    folded = fold_scalings(module, lambda: _all_of(module, images[:1]))
    rate_of = {f"backbone.blocks.{i}": rate for i, rate in enumerate(rates, start=1)}
    forms = choose_forms(
        module,
        lambda: _all_of(module, images),
        lambda name: rate_of.get(".".join(name.split(".")[:3]), 1.0),
        time,
    )
    folded |= fold_inputs(module, lambda: _all_of(module, images[:1]))
    kept = tuple(name for name, each in module.named_modules() if isinstance(each, _BatchNorm))
    blocks: dict[str, Choice] = {}
    if isinstance(module, GatedNetwork):
        module = DeployedNetwork(module)
        blocks = _choose_actions(module, images, rates, time)
    report = DeployReport(
        batch=len(images),
        device=str(device),
        folded=folded,
        kept=kept,
        forms=forms,
        blocks=blocks,
        rates=tuple(rates),
        macs_before=macs_before,
        macs_after=expected_macs(module, images[:1], rates),
        params_before=params_before,
        params_after=_parameters(module),
    )
    return Deployed(module.requires_grad_(False), report)


def _all_of(module: nn.Module, images: Tensor) -> object:
    """Run every layer, gates and all blocks included."""
    if isinstance(module, GatedNetwork):
        return module(images, torch.ones(len(images), module.num_gates, device=images.device), "masked").logits
    return module(images)


def _choose_actions(net: DeployedNetwork, images: Tensor, rates: Sequence[float], time: Stopwatch) -> dict[str, Choice]:
    """Let each gated block be gathered or blended, whichever is faster at its rate."""
    choices: dict[str, Choice] = {}
    x = net.step(0)(net.backbone.stem(images), None)
    for i, rate in enumerate(rates, start=1):
        step = net.step(i)
        latencies = _latencies(cast(ResidualBlock, step.block), x, rate, time)
        choices[str(i)] = choice = Choice.fastest(latencies, before="gather")
        step.action = "blend" if choice.chosen == "blend" else "gather"
        x = cast(ResidualBlock, step.block)(x)
    return choices


def _latencies(block: ResidualBlock, x: Tensor, rate: float, time: Stopwatch) -> dict[str, Latency]:
    """Of gathering and blending a block on ``x [B, C, H, W]``, of which ``rate`` images execute it on average.

    The times of gathering for the whole numbers of images on both sides of ``rate x B`` are interpolated.
    """
    few = min(math.floor(rate * len(x)), len(x) - 1)
    arms = {}
    for count in (few, few + 1):
        # Spread over the batch, as they will be.
        order = torch.linspace(0, len(x) - 1, count, device=x.device).round().long()
        decision = torch.zeros(len(x), dtype=torch.bool, device=x.device).index_fill_(0, order, True)
        arms[f"gather {count}"] = _act("gather", block, x, decision)
        arms["blend"] = _act("blend", block, x, decision)
    found = time(arms)
    low, high = found[f"gather {few}"], found[f"gather {few + 1}"]
    share = rate * len(x) - few
    between = Latency(
        *((1 - share) * getattr(low, name) + share * getattr(high, name) for name in _TIMES), rounds=low.rounds
    )
    return {"gather": between, "blend": found["blend"]}


_TIMES = ("median_ms", "lower_quartile_ms", "upper_quartile_ms")


def _act(action: str, block: ResidualBlock, x: Tensor, decision: Tensor) -> Callable[[], object]:
    return lambda: ACTIONS[action](block, x, decision)


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
