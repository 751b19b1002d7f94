"""From a trained network to the module that is shipped: folded, in the forms that the clock prefers."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hybridprune.data import Batch
from hybridprune.deploy.actions import choose_actions
from hybridprune.deploy.choice import Choice
from hybridprune.deploy.cost import expected_macs
from hybridprune.deploy.fold import fold_inputs, fold_scalings
from hybridprune.deploy.forms import choose_forms
from hybridprune.deploy.harden import Harden, fix_certain, fix_dear
from hybridprune.deploy.network import DeployedNetwork
from hybridprune.deploy.report import DeployReport
from hybridprune.deploy.validate import Validated, evaluate_module
from hybridprune.errors import RunFailed, UserError
from hybridprune.measure.latency import Stopwatch, stopwatch
from hybridprune.models.skipnet import GatedNetwork

TOLERANCE = 1e-3
"""How far rounding may change logits, relative to the largest."""


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
    harden: Harden | None = None,
    validation: Iterable[Batch] | None = None,
    time: Stopwatch | None = None,
) -> Deployed:
    """A copy of ``model`` that computes the same, faster; ``model`` itself is not changed.

    BatchNorm is folded into the layers before it (or behind, where they do not pad), each factored layer takes the
    form that is fastest on ``device``, each gated block is gathered or blended, whichever is faster, and recurrent
    gates become two matrix products. Only ``harden`` changes decisions.

    Args:
        model: a gated network or any other module of images (one tensor of logits).
        example_input: normalised images ``[B, 3, H, W]`` of the batch size, the memory format and, best, the kind that
            will come.
        device: where the module will run; None: where ``example_input`` lies.
        rates: expected execution rate of each gated block; None: as on the validation images, if there are, or else on
            the example.
        harden: which decisions are taken once and for all; None: none. Needs ``validation``.
        validation: batches on ``device``, gone through several times.
        time: how alternatives are timed; None: interleaved, by the clock of the device.

    Raises:
        UserError: if ``harden`` is given without ``validation`` or without gates.
        RunFailed: if folded layers give other logits than those of ``model``, as they may where code reaches a module
            by other ways than through its parents.
    """
    device = torch.device(device or example_input.device)
    images = example_input.to(device)
    time = time or stopwatch(device)
    module = copy.deepcopy(model).to(device).eval()
    gates = module.num_gates if isinstance(module, GatedNetwork) else 0
    if harden is not None and (validation is None or not gates):
        raise UserError("harden: changes decisions, so it needs gates, and validation=, labelled images to judge it by")
    before = None if validation is None else evaluate_module(module, validation)
    if rates is not None:
        expected = list(rates)
    elif before is not None:
        expected = before.block_rates
    else:
        expected = module(images, mode="executed").decisions.mean(0).tolist() if gates else []
    assert len(expected) == gates, (len(expected), gates)
    if isinstance(module, GatedNetwork) and not gates:
        module = module.backbone
    macs_before, params_before = expected_macs(module, images[:1], expected), _parameters(module)

    logits = _all_of(module, images)
    folded, forms, folded_inputs = _fold_and_form(module, images, expected, time)
    _check_same(logits, _all_of(module, images))
    blocks: dict[str, Choice] = {}
    fixed: dict[str, str] = {}
    if isinstance(module, GatedNetwork):
        module = DeployedNetwork(module)
        if harden is not None:
            assert before is not None
            fixed = fix_certain(module, before.block_rates, harden, images[:1])
            expected = _rates(module, validation if rates is None else None, expected)
        blocks = choose_actions(module, images, expected, time, or_run=harden is not None and harden.unprofitable)
        if harden is not None:
            fixed |= fix_dear(module, blocks, harden, images[:1])
            expected = _rates(module, validation if rates is None else None, expected)
    after = None if validation is None else evaluate_module(module, validation)
    report = DeployReport(
        batch=len(images),
        device=str(device),
        folded=folded,
        folded_inputs=folded_inputs,
        kept=tuple(name for name, each in module.named_modules() if isinstance(each, _BatchNorm)),
        forms=forms,
        blocks=blocks,
        fixed=fixed,
        steps=module.records() if isinstance(module, DeployedNetwork) else (),
        rates=tuple(expected),
        validated=None if before is None or after is None else Validated.of(before, after),
        macs_before=macs_before,
        macs_after=expected_macs(module, images[:1], expected),
        params_before=params_before,
        params_after=_parameters(module),
    )
    return Deployed(module.requires_grad_(False), report)


def _fold_and_form(
    module: nn.Module, images: Tensor, rates: Sequence[float], time: Stopwatch
) -> tuple[dict[str, str], dict[str, Choice], dict[str, str]]:
    """Fold what can be folded and choose forms, in place; what was done."""
    rate_of = {f"backbone.blocks.{i}": rate for i, rate in enumerate(rates, start=1)}
    folded = fold_scalings(module, lambda: _all_of(module, images[:1]))
    forms = choose_forms(
        module,
        lambda: _all_of(module, images),
        lambda name: rate_of.get(".".join(name.split(".")[:3]), 1.0),
        time,
    )
    # Now, since a shift before a rotation keeps it from being multiplied into a core that pads.
    return folded, forms, fold_inputs(module, lambda: _all_of(module, images[:1]))


def _check_same(before: Tensor, after: Tensor) -> None:
    difference = float((after - before).abs().max() / before.abs().max().clamp_min(torch.finfo(before.dtype).tiny))
    if not difference <= TOLERANCE:  # nor if it is not a number
        raise RunFailed(
            f"deploying: folding changes the logits by {difference:.1e} (relative); this network can't be deployed"
        )


def _all_of(module: nn.Module, images: Tensor) -> Tensor:
    """Run every layer, gates and all blocks included."""
    if isinstance(module, GatedNetwork):
        return module(images, torch.ones(len(images), module.num_gates, device=images.device), "masked").logits
    return module(images)


def _rates(net: DeployedNetwork, validation: Iterable[Batch] | None, expected: Sequence[float]) -> list[float]:
    """Execution rates on the validation images; without them, as ``expected`` but where a decision is fixed."""
    if validation is not None:
        return evaluate_module(net, validation).block_rates
    fixed = {"run": 1.0, "skip": 0.0}
    return [fixed.get(net.step(i).action, rate) for i, rate in enumerate(expected, start=1)]


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
