"""Fine-tuning of a user's own module, in memory: no run folder, nothing to resume."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from itertools import islice

import torch
from torch import nn

from hybridprune.batch import Batch
from hybridprune.curvature import CROSS_ENTROPY, Likelihood
from hybridprune.engine.descent import Descent
from hybridprune.engine.distill import Distillation, Forward, plainly
from hybridprune.engine.freeze import frozen_parameters
from hybridprune.engine.loop import Loop
from hybridprune.engine.modes import kept_modes, training_mode
from hybridprune.engine.objective import LikelihoodLoss
from hybridprune.engine.pressure import Drive, parameter_groups
from hybridprune.engine.rates import lr_factors
from hybridprune.engine.schedule import factor
from hybridprune.engine.step_means import StepMeans
from hybridprune.errors import UserError
from hybridprune.precision import Precision
from hybridprune.processes import json_from_first
from hybridprune.progress_bar import bar

WARM_UP = {"0": 0.0, "0.1": 1.0, "1": 0.0}
SHOW_EVERY = 20


def warm_up(share: float) -> float:
    """The usual schedule over the share of a training: a linear rise over the first tenth, then a linear fall to 0."""
    return factor("up-down", WARM_UP, share)


def finetune(
    model: nn.Module,
    batches: Iterable[Batch],
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
    """Train ``model`` in place, on ``batches``, by SGD with Nesterov momentum.

    The learning rate rises linearly to ``lr`` over the first tenth of the steps and falls linearly to 0, or is ``lr``
    times the ``schedule`` of the share in (0, 1) of the training that the step is in the middle of. ``epochs`` counts
    passes over the batches (0.5: half of one); ``frozen`` names parameters to leave alone. With a ``kd_weight`` the
    loss is partly the distillation from ``teacher``. ``precision`` may be bfloat16. A ``drive`` pushes the weights
    towards sparsity. The loss is that of the ``likelihood``, of what ``forward(model, inputs)`` gives. After each full
    pass, ``after_epoch`` gets its number, from 1, and the mean loss of its steps; it may change the modes of the model.
    The model stays on ``device``, where the batches are, and in its mode. Where several processes train together, each
    gives batches of its own, gradients are averaged, and the first one says how many steps there are; each keeps its
    own BatchNorm statistics. BatchNorms are at rest in a batch of one image. Raises UserError if the batches have no
    length or there are none, for a missing teacher, a weight out of range or a model of which nothing can be trained,
    and RunFailed when the loss is not finite.
    """
    forward = Precision(device.type, precision)(forward)
    distillation = _distillation(model, teacher, kd_weight, kd_temperature, device, likelihood, forward)
    steps = json_from_first(lambda: max(1, round(epochs * length(batches))) if epochs > 0 else 0)
    model.to(device)
    per_pass = max(1, length(batches))
    description = "fine-tuning" if drive is None else "sparse training"
    with training_mode(model), frozen_parameters(model, frozen), bar(description=description, total=steps) as shown:
        descent = Descent(
            model,
            parameter_groups(trainable(model), drive, lr_factors=lr_factors(model)),
            device,
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            schedule=schedule,
            steps=steps,
            rate_at=0.5,  # neither the first nor the last step is wasted on a rate of 0
            drive=drive,
        )
        remedy = f"fine-tune with a lower lr (now {lr})"
        loop = Loop(LikelihoodLoss(likelihood, distillation), descent, per_pass, remedy, lone_at_rest=True)
        for done in loop(partial(forward, model), _cycle(batches, steps)):
            shown.update()
            watched = after_epoch is not None and done % per_pass == 0
            if watched or done % SHOW_EVERY == 0 or done == steps:
                means = loop.read()
                shown.set_postfix(loss=f"{means['loss']:.4f}", refresh=False)
                if watched and after_epoch is not None:
                    with kept_modes(model):
                        after_epoch(done // per_pass, means["loss"])
            if done % per_pass == 0:
                loop.means = StepMeans()
        descent.optimizer.zero_grad(set_to_none=True)


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


def length(batches: Iterable[Batch]) -> int:
    """The number of batches of one pass; UserError if their loader does not say."""
    try:
        return len(batches)  # type: ignore[arg-type]
    except TypeError as error:
        raise UserError("the loader has no length; give a DataLoader of a map-style dataset, or a list") from error


def _cycle(batches: Iterable[Batch], steps: int) -> Iterator[Batch]:
    """The first ``steps`` batches of endless passes."""
    done = 0
    while done < steps:
        before = done
        for batch in islice(batches, steps - done):
            yield batch
            done += 1
        if done == before:
            raise UserError("the loader gives no batches; give one that can be iterated more than once")
