"""Fine-tuning of a user's own module, in memory: no run folder, nothing to resume."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import nullcontext
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from hybridprune.curvature import CROSS_ENTROPY, Likelihood
from hybridprune.engine.distill import Distillation, Forward, plainly
from hybridprune.engine.freeze import frozen_parameters
from hybridprune.engine.modes import kept_modes, norms_at_rest, training_mode
from hybridprune.engine.parallel import average_gradients
from hybridprune.engine.pressure import Drive, parameter_groups
from hybridprune.engine.schedule import factor
from hybridprune.errors import RunFailed, UserError
from hybridprune.nested import images_in, on_device
from hybridprune.precision import Precision
from hybridprune.processes import json_from_first
from hybridprune.progress_bar import bar

WARM_UP = {"0": 0.0, "0.1": 1.0, "1": 0.0}
SHOW_EVERY = 20
NO_GRADIENT = "fine-tuning: no gradient of the loss reaches the model; mend the network or the loss"

Loader = Iterable[tuple[Any, Any]]


def warm_up(share: float) -> float:
    """The usual schedule over the share of a training: a linear rise over the first tenth, then a linear fall to 0."""
    return factor("up-down", WARM_UP, share)


def finetune(
    model: nn.Module,
    loader: Loader,
    *,
    epochs: float,
    lr: float,
    device: torch.device,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    teacher: nn.Module | None = None,
    kd_weight: float = 0.0,
    kd_temperature: float = 4.0,
    frozen: Collection[str] = (),
    precision: torch.dtype = torch.float32,
    drive: Drive | None = None,
    likelihood: Likelihood = CROSS_ENTROPY,
    forward: Forward = plainly,
    schedule: Callable[[float], float] = warm_up,
    after_epoch: Callable[[int, float], object] | None = None,
) -> None:
    """Train ``model`` in place, on pairs of inputs and targets, by SGD with Nesterov momentum.

    The learning rate rises linearly to ``lr`` over the first tenth of the steps and falls linearly to 0, or is ``lr``
    times the ``schedule`` of the share in (0, 1) of the training that the step is in the middle of. ``epochs`` counts
    passes over ``loader`` (0.5: its first half); ``frozen`` names parameters to leave alone. With a ``kd_weight`` the
    loss is partly the distillation from ``teacher``. ``precision`` may be bfloat16. A ``drive`` pushes the weights
    towards sparsity. The loss is that of the ``likelihood``, of what ``forward(model, inputs)`` gives. After each full
    pass, ``after_epoch`` gets its number, from 1, and the mean loss of its steps; it may change the modes of the model.
    The model stays on ``device`` and in its mode. Where several processes train together, each gives batches of its
    own, gradients are averaged, and the first one's loader says how many steps there are; each keeps its own BatchNorm
    statistics. BatchNorms are at rest in a batch of one image. Raises UserError for a loader without a length or
    batches, a missing teacher, a weight out of range or a model of which nothing can be trained, and RunFailed when the
    loss is not finite.
    """
    forward = Precision(device.type, precision)(forward)
    distillation = _distillation(model, teacher, kd_weight, kd_temperature, device, likelihood, forward)
    steps = json_from_first(lambda: max(1, round(epochs * length(loader))) if epochs > 0 else 0)
    model.to(device)
    with (
        training_mode(model),
        frozen_parameters(model, frozen),
        bar(description="fine-tuning" if drive is None else "sparse training", total=steps) as shown,
    ):
        losses: list[Tensor] = []
        trained = trainable(model)
        optimizer = torch.optim.SGD(
            parameter_groups(trained, drive),
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            nesterov=momentum > 0,
        )
        for step, (inputs, targets) in enumerate(_cycle(loader, steps)):
            # The middle of the step: neither the first nor the last one is wasted on a rate of 0.
            scheduled = lr * schedule((step + 0.5) / steps)
            for group in optimizer.param_groups:
                group["lr"] = scheduled * group["factor"]
            inputs, targets = on_device(inputs, device), on_device(targets, device)
            # Until the gradient is there: checkpointing runs parts of the network once more.
            with norms_at_rest(model) if images_in(inputs) == 1 else nullcontext():
                output = forward(model, inputs)
                loss = likelihood.loss(output, targets)
                if distillation is not None:
                    loss, _ = distillation(inputs, output, loss)
                if not loss.requires_grad:
                    raise UserError(NO_GRADIENT)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
            average_gradients(p for _, p in trained)
            if drive is not None:
                drive.pressure.add_gradients(step / steps)
            optimizer.step()
            losses.append(loss.detach())
            shown.update()
            if (step + 1) % SHOW_EVERY == 0 or step + 1 == steps:
                _check_finite(loss, step, lr)
                shown.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
            if len(losses) == length(loader):
                if after_epoch is not None:
                    _check_finite(loss, step, lr)
                    with kept_modes(model):
                        after_epoch((step + 1) // len(losses), float(torch.stack(losses).double().mean()))
                losses.clear()
        optimizer.zero_grad(set_to_none=True)


def _distillation(
    model: nn.Module,
    teacher: nn.Module | None,
    weight: float,
    temperature: float,
    device: torch.device,
    likelihood: Likelihood,
    forward: Forward,
) -> Distillation | None:
    if not 0 <= weight <= 1 or temperature <= 0:
        raise UserError(f"kd_weight {weight}, kd_temperature {temperature}: give a share in [0, 1] and one above 0")
    if weight > 0 and (teacher is None or teacher is model):
        raise UserError(f"kd_weight {weight}: needs a teacher other than the model; copy the model before it is pruned")
    distillation = None if teacher is None else Distillation.of(teacher, weight, temperature, likelihood, forward)
    if distillation is not None:
        distillation.teacher.to(device)
    return distillation


def trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The parameters that a training changes, by name; UserError if there are none."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not trained:
        raise UserError("fine-tuning: no parameter of the model requires a gradient; unfreeze some, or fine-tune 0")
    return trained


def length(loader: Loader) -> int:
    """How many batches one pass has; UserError if the loader does not say."""
    try:
        return len(loader)  # type: ignore[arg-type]
    except TypeError as error:
        raise UserError("the loader has no length; give a DataLoader of a map-style dataset, or a list") from error


def _cycle(loader: Loader, steps: int) -> Iterator[tuple[Any, Any]]:
    """The first ``steps`` batches of endless passes."""
    done = 0
    while done < steps:
        before = done
        for batch in islice(loader, steps - done):
            yield batch
            done += 1
        if done == before:
            raise UserError("the loader gives no batches; give one that can be iterated more than once")


def _check_finite(loss: Tensor, step: int, lr: float) -> None:
    if not math.isfinite(loss.item()):
        raise RunFailed(f"the loss is not finite in step {step + 1}; fine-tune with a lower lr (now {lr})")
