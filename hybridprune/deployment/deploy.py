"""The module that is shipped, made of a trained network: folded, in the forms that the clock prefers."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hybridprune.config import argument_names
from hybridprune.data import Batch
from hybridprune.deployment.assembly import Assembly, all_of, exact_logits
from hybridprune.deployment.batch_splitting import in_one
from hybridprune.deployment.cascade import DeployedCascade, Forked
from hybridprune.deployment.cost import expected_macs
from hybridprune.deployment.fold import fold_scalings
from hybridprune.deployment.harden import Harden
from hybridprune.deployment.layer_variants import recomposed
from hybridprune.deployment.network import DeployedNetwork
from hybridprune.deployment.report import DeployReport
from hybridprune.deployment.validate import Validated, evaluate_module
from hybridprune.engine.device import device_of
from hybridprune.engine.evaluate import Evaluation
from hybridprune.errors import UserError
from hybridprune.measure.latency import Stopwatch, stopwatch
from hybridprune.models.cascade import Cascade
from hybridprune.models.frozen_norm import is_norm
from hybridprune.models.held import AnyNetwork, network_of
from hybridprune.models.routed import RoutedNetwork
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.progress_bar import progress_bars


class Deployed(NamedTuple):
    """A network for inference and what was done to get it."""

    module: nn.Module
    """Images ``[B, 3, H, W]`` to logits; a `DeployedNetwork` or `DeployedCascade` where there are gates, else
    `InPieces` where these pay."""
    report: DeployReport


@argument_names()
@torch.no_grad()
def deploy(
    model: AnyNetwork,
    example_input: Tensor,
    device: torch.device | str | None = None,
    *,
    rates: Sequence[float] | None = None,
    harden: Harden | None = None,
    validation: Iterable[Batch] | None = None,
    time: Stopwatch | None = None,
    progress: bool = True,
) -> Deployed:
    """A copy of ``model`` that computes the same, faster; ``model`` itself is not changed.

    BatchNorm is folded into the layers before it (or behind, where they do not pad), each factored layer and each 1x1
    convolution takes the form that is fastest on ``device`` (unless the whole network is faster with dense layers),
    large batches are run in pieces, each gated block is gathered or blended, whichever is faster, and recurrent gates
    become two matrix products. Of a cascade each member is deployed by itself, on as many images as come as far, and a
    trunk that two of them share as a part of its own, which runs once. Only ``harden`` changes decisions.

    Args:
        model: a gated network, a cascade or any other module of images (one tensor of logits), or what `prune`,
            `cascade` or `load` returns.
        example_input: normalised images ``[B, 3, H, W]`` of the batch size, the memory format and, best, the kind that
            will come.
        device: where the module will run; None: where ``example_input`` lies.
        rates: expected execution rate of each gated block, or of each member of a cascade behind the first; None: as
            on the validation images, if there are, or else on the example.
        harden: which decisions are taken once and for all; None: none. Needs ``validation``.
        validation: batches on ``device``, gone through several times.
        time: how alternatives are timed; None: interleaved, by the clock of the device.
        progress: whether bars show, on a terminal or in a notebook, how far the timing has come.

    Raises:
        UserError: if ``harden`` is given without ``validation``, without gates or for a cascade; if ``model`` takes or
            gives something else than one tensor; if ``rates`` are not a share in [0, 1] for each gated block.
        RunFailed: if folded layers give other logits than those of ``model``, as they may where code reaches a module
            by other ways than through its parents.
    """
    if not isinstance(given := network_of(model), nn.Module):
        raise UserError(f"model: is a {type(model).__name__}; give a torch.nn.Module, or what prune or load returns")
    if isinstance(given, Cascade) and harden is not None:
        raise UserError("harden: is for gated blocks; a cascade of which a member always or never runs does without it")
    if not isinstance(example_input, Tensor):
        raise UserError(
            f"example_input: is a {type(example_input).__name__}; only modules that take one tensor can be deployed"
        )
    if not example_input.ndim or not len(example_input):
        raise UserError(
            f"example_input: is {list(example_input.shape)}; give images [B, 3, H, W], as many as will come"
        )
    device = device_of(device or example_input.device, "device")
    images = example_input.to(device)
    time = time or stopwatch(device)
    module = copy.deepcopy(given).to(device).eval()
    gates = module.num_gates if isinstance(module, RoutedNetwork) else 0
    if harden is not None and (validation is None or not gates):
        raise UserError("harden: changes decisions, so it needs gates, and validation=, labelled images to judge it by")
    if not isinstance(module, GatedNetwork) and not isinstance(output := _tried(module, images), Tensor):
        raise UserError(
            f"{type(given).__name__}: gives a {type(output).__name__}; only modules that give one tensor can be "
            "deployed"
        )
    if validation is not None:
        _check_validation(validation)
    before = None if validation is None else evaluate_module(module, validation)
    if rates is not None:
        expected = _checked_rates(rates, module)
    elif before is not None:
        expected = before.block_rates
    else:
        expected = module(images, mode="executed").decisions.mean(0).tolist() if gates else []
    if isinstance(module, Cascade):
        return _deploy_cascade(module, images, expected, before, validation, time, progress)
    if isinstance(module, GatedNetwork) and not gates:
        module = module.backbone
    macs_before, params_before = expected_macs(module, images[:1], expected), _parameters(module)

    logits = exact_logits(module, images)
    folded = fold_scalings(module, lambda: all_of(module, images[:1]))
    assembly = Assembly(module, images, logits, harden, () if before is None else before.block_rates, time)
    # What is certain and the pieces first, since forms and actions are timed on the images that will come together.
    plain = assembly.assemble(recomposed(module))[0]
    if harden is not None:
        expected = _rates(plain, validation if rates is None else None, expected)
    piece, pieces = assembly.choose_piece(plain, expected)
    with progress_bars(progress):
        found, whole = assembly.fastest(expected, piece)
    if harden is not None:
        expected = _rates(found.module, validation if rates is None else None, expected)
    after = None if validation is None else evaluate_module(found.module, validation)
    inner = in_one(found.module)
    report = DeployReport(
        batch=len(images),
        device=str(device),
        piece=piece,
        pieces=pieces,
        whole=whole,
        folded=folded,
        folded_inputs=found.folded_inputs,
        kept=tuple(name for name, each in inner.named_modules() if is_norm(each) or isinstance(each, _BatchNorm)),
        forms=found.forms,
        blocks=found.blocks,
        fixed=found.fixed,
        steps=inner.records() if isinstance(inner, DeployedNetwork) else (),
        rates=tuple(expected),
        validated=None if before is None or after is None else Validated.of(before, after),
        macs_before=macs_before,
        macs_after=expected_macs(inner, images[:1], expected),
        params_before=params_before,
        params_after=_parameters(inner),
    )
    return Deployed(found.module.requires_grad_(False), report)


def _deploy_cascade(
    net: Cascade,
    images: Tensor,
    rates: Sequence[float],
    before: Evaluation | None,
    validation: Iterable[Batch] | None,
    time: Stopwatch,
    progress: bool,
) -> Deployed:
    """Each member by itself, on as many images as come as far, or their features."""
    found: list[Deployed] = []
    features: Tensor | None = None
    for parts, rate in zip(net.parts(), (1.0, *rates), strict=True):
        inputs = (images if features is None else features)[: max(1, round(rate * len(images)))]
        member, features = _deploy_member(parts, inputs, time, progress)
        found.append(member)
    module = DeployedCascade.of(net, [each.module for each in found])
    after = None if validation is None else evaluate_module(module, validation)
    report = DeployReport(
        batch=len(images),
        device=str(images.device),
        piece=None,
        pieces=None,
        whole=None,
        folded={},
        folded_inputs={},
        kept=(),
        forms={},
        blocks={},
        fixed={},
        steps=(),
        rates=tuple(rates),
        validated=None if before is None or after is None else Validated.of(before, after),
        macs_before=expected_macs(net, images[:1], rates),
        macs_after=expected_macs(module, images[:1], rates),
        params_before=_parameters(net),
        params_after=_parameters(module),
        members=tuple(each.report for each in found),
    )
    return Deployed(module.requires_grad_(False), report)


def _deploy_member(
    parts: Sequence[nn.Module], inputs: Tensor, time: Stopwatch, progress: bool
) -> tuple[Deployed, Tensor | None]:
    """A member, part by part; and the features of ``inputs`` that the next one goes on from, if it does."""
    first = deploy(parts[0], inputs, time=time, progress=progress)
    if len(parts) == 1:
        return first, None
    features = first.module(inputs)
    rest = deploy(parts[1], features, time=time, progress=progress)
    return Deployed(Forked(first.module, rest.module), rest.report.behind(first.report)), features


def _tried(module: nn.Module, images: Tensor) -> object:
    """The output; UserError for whatever foreign code raises."""
    try:
        return all_of(module, images)
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        said = (str(error).strip().splitlines() or [""])[0]
        raise UserError(
            f"example_input: the network fails on it ({type(error).__name__}: {said}); give images that it takes"
        ) from error


def _check_validation(validation: Iterable[Batch]) -> None:
    iterator = iter(validation)
    if iterator is validation:
        raise UserError(
            f"validation: is a {type(validation).__name__}, which can be gone through once; give a list of batches"
        )
    first = next(iterator, None)
    if first is None:
        raise UserError("validation: gives no batches; give some, however often it is gone through")
    if not isinstance(first, Batch):
        raise UserError(f"validation: a batch is a {type(first).__name__}; give hybridprune.data.Batch(images, labels)")


def _checked_rates(rates: Sequence[float], module: nn.Module) -> list[float]:
    gates = module.num_gates if isinstance(module, RoutedNetwork) else 0
    parts, part = ("members behind the first", "member") if isinstance(module, Cascade) else ("gated blocks", "block")
    if len(rates) != gates:
        raise UserError(f"rates: are {len(rates)}, and the network has {gates} {parts}; give one for each")
    for number, rate in enumerate(rates, start=1):
        if not 0 <= rate <= 1:
            raise UserError(f"rates: that of {part} {number} is {rate}; give shares of the images, in [0, 1]")
        if part == "member" and rate > min(rates[:number]):
            raise UserError(f"rates: that of member {number} is above the one before it; fewer images come as far")
    return list(rates)


def _rates(net: nn.Module, validation: Iterable[Batch] | None, expected: Sequence[float]) -> list[float]:
    """Execution rates on the validation images; without them, as ``expected`` but where a decision is fixed."""
    assert isinstance(net, DeployedNetwork)
    if validation is not None:
        return evaluate_module(net, validation).block_rates
    fixed = {"run": 1.0, "skip": 0.0}
    return [fixed.get(net.step(i).action, rate) for i, rate in enumerate(expected, start=1)]


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
