"""The training loop that all stages share: resumable at every step, selecting on the validation split."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from hybridprune.ambient import reseed, seeded
from hybridprune.config import OptimOptions
from hybridprune.data import Batch, TrainBatches
from hybridprune.engine.batchnorm import average_statistics, synchronised
from hybridprune.engine.compiler import compiled
from hybridprune.engine.curves import Curves
from hybridprune.engine.freeze import frozen_parameters
from hybridprune.engine.interrupt import deferred_interrupt
from hybridprune.engine.objective import Objective
from hybridprune.engine.parallel import average_gradients, share_weights
from hybridprune.engine.pressure import Drive, parameter_groups
from hybridprune.engine.progress import Progress, Validation
from hybridprune.engine.schedule import factor
from hybridprune.engine.step_means import StepMeans
from hybridprune.errors import Interrupted, RunFailed, UserError
from hybridprune.models.shakedrop import ShakeDrop
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.precision import Precision, tf32
from hybridprune.processes import count, is_first, largest, rank
from hybridprune.store.run_folder import RunFolder
from hybridprune.store.seeds import stream_seed

GO_ON = "the state is saved; give the same command with --resume to go on"
SAVE = 1
"""A wish to save within an epoch; signals, which are larger numbers, also end the training."""


@dataclass
class Fit:
    """One training of ``net``: what is fixed while it runs.

    Several processes do the same steps, each on its share of every batch. What they save is the state of all: it can
    be resumed by any number of them.
    """

    run: RunFolder
    net: GatedNetwork
    objective: Objective
    batches: TrainBatches
    validate: Callable[[GatedNetwork], Validation]
    optim: OptimOptions
    epochs: int
    device: torch.device
    log_interval: int
    save_every: float = 0.0
    """Minutes after which the state is saved within an epoch; 0: only between epochs."""
    compile: bool = False
    lr_factor: float = 1.0
    """This training's learning rate over that of ``optim``; not part of the saved state."""
    frozen: Collection[str] = ()
    """Names of the parameters of ``net`` that are not trained."""
    gate_lr_factor: float = 1.0
    """The gates' learning rate over the backbone's."""
    gate_grad_norm: float | None = None
    """Largest norm of the gates' gradient in one step."""
    extra_state: dict[str, Any] = field(default_factory=dict)
    """Kept in the saved state for the stage: what rebuilds the network, for example its edits."""
    train_mode: Callable[[GatedNetwork], object] = nn.Module.train
    """Puts the network into the mode of a training step."""
    sync_batchnorm: bool = False
    """Whether BatchNorm sees the whole batch of all processes."""
    drive: Drive | None = None
    """What drives the training towards sparsity."""
    keep_last: bool = False
    """The last epoch's weights are the selected ones, and not the best on validation."""

    def __post_init__(self) -> None:
        # A group may be empty: not every network has gates.
        self._optimizer = torch.optim.SGD(
            [
                *parameter_groups(self._trained("backbone"), self.drive),
                *parameter_groups(self._trained("gate"), None, self.gate_lr_factor),
            ],
            lr=self.optim.lr * self.lr_factor,
            momentum=self.optim.momentum,
            weight_decay=self.optim.weight_decay,
            nesterov=self.optim.momentum > 0,
        )
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=self.optim.precision == "fp16")
        self._means = StepMeans()
        self._saved = time.monotonic()

    def _trained(self, part: str) -> list[tuple[str, nn.Parameter]]:
        named = self.net.get_submodule(part).named_parameters(prefix=part)
        return [(name, parameter) for name, parameter in named if name not in self.frozen]

    def __call__(self, progress: Progress, state: dict[str, Any] | None) -> Progress:
        """Train from ``progress`` (and the saved ``state`` that belongs to it) to the last epoch.

        Leaves the best weights on validation in selected.safetensors and the last ones in last.safetensors.
        Raises RunFailed when the loss is not finite, UserError when an image cannot be read, and Interrupted on Ctrl-C
        or SIGTERM, all with the state saved.
        """
        if state is not None:
            self._load(state)
        share_weights(self.net)
        self.run.rewind_metrics(progress.phase, progress.epoch if progress.step or progress.epoch else -1)
        with (
            seeded(0, self.device),  # every step has its own
            frozen_parameters(self.net, self.frozen),
            deferred_interrupt() as wished,
            Curves(self.run.path / "tb") if is_first() else nullcontext() as curves,
            synchronised(self.net) if self.sync_batchnorm else nullcontext(),
        ):
            passes = Precision.of(self.optim.precision, self.device)
            forward = passes(compiled(self.net, self.device) if self.compile else self.net)

            def wish() -> int:
                due = 0 < 60 * self.save_every <= time.monotonic() - self._saved
                return largest(wished() or SAVE * due)

            if progress.epoch == 0 and progress.step == 0:
                self._finish_epoch(progress, curves, {})
            while progress.epoch < self.epochs and wish() <= SAVE:
                with tf32(self.optim.tf32 and self.device.type == "cuda"):
                    self._epoch(forward, progress, wish)
                progress.epoch, progress.step = progress.epoch + 1, 0
                self._finish_epoch(progress, curves, self._means.read())
            if (signum := wish()) > SAVE:  # while validating
                raise Interrupted(GO_ON, signum)
        self.run.save_weights("last.safetensors", self.net)
        return progress

    def _epoch(self, forward: Any, progress: Progress, wish: Callable[[], int]) -> None:
        self.train_mode(self.net)
        steps = len(self.batches)
        started = time.monotonic() - progress.seconds
        with tqdm(
            self._batches(progress),
            initial=progress.step,
            total=steps,
            unit="step",
            leave=False,
            desc=f"epoch {progress.epoch + 1}/{self.epochs}",
            disable=None if is_first() else True,
            file=sys.stderr,
            miniters=self.log_interval,
        ) as bar:
            for batch in bar:
                self._place(progress, batch)
                done = (progress.epoch * steps + progress.step) / (self.epochs * steps)
                self._set_lr(done)
                loss, metrics = self.objective(forward, batch, progress.epoch + progress.step / steps)
                self._step(loss, batch.weight, done)
                self._means.add({"loss": loss.detach(), **metrics}, batch.weight)
                progress.step += 1
                if progress.step % self.log_interval == 0:
                    self._join()
                    self._check_finite(progress)
                    bar.set_postfix({name: f"{value:.4f}" for name, value in self._means.read().items()})
                if wished := wish():
                    self._join()
                    self._check_finite(progress)
                    progress.seconds = time.monotonic() - started
                    self.save(progress)
                    if wished > SAVE:
                        raise Interrupted(GO_ON, wished)
        self._join()
        self._check_finite(progress)
        progress.seconds = time.monotonic() - started

    def _batches(self, progress: Progress) -> Iterator[Batch]:
        try:
            yield from self.batches.epoch(progress.phase * 100_000 + progress.epoch, progress.step)
        except UserError as error:  # a streamed image cannot be read
            # Several processes: the others are in the middle of a step, so what the last epoch saved has to do.
            if count() == 1 and progress.step:
                self._check_finite(progress)
                self.save(progress)
            raise UserError(f"{error}; {GO_ON}") from error

    def _place(self, progress: Progress, batch: Batch) -> None:
        """Let what is random in the network know which process it is in."""
        if batch.share is not None:
            for module in self.net.modules():
                if isinstance(module, ShakeDrop):
                    module.within = batch.share.start, batch.share.whole
        # Dropout: each process has masks of its own, and the same ones after a resume, on every device.
        place = progress.phase, progress.epoch, progress.step, rank()
        reseed(stream_seed(self.batches.seed, "dropout", *place), self.device)

    def _step(self, loss: Tensor, weight: float, done: float) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(loss if weight == 1 else loss * weight).backward()
        average_gradients(self.net.parameters())
        if self.drive is not None or self.gate_grad_norm is not None:
            self._scaler.unscale_(self._optimizer)
        if self.drive is not None:
            self.drive.pressure.add_gradients(done)
        if self.gate_grad_norm is not None:
            nn.utils.clip_grad_norm_(list(self.net.gate.parameters()), self.gate_grad_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()

    def _set_lr(self, share: float) -> None:
        scheduled = factor(self.optim.scheduler_id, self.optim.scheduler_params, share)
        lr = self.optim.lr * self.lr_factor * scheduled
        for group in self._optimizer.param_groups:
            group["lr"] = lr * group["factor"]

    def _join(self) -> None:
        """Make the means and the running statistics those of all processes; again and again does no harm."""
        if count() > 1:
            self._means.join()
            average_statistics(self.net)

    def _check_finite(self, progress: Progress) -> None:
        if not math.isfinite(float(self._means.sums["loss"])):
            raise RunFailed(
                f"the loss is not finite at epoch {progress.epoch + 1}, step {progress.step}; start anew with a lower "
                f"--lr (now {self.optim.lr}) and another --exp_name"
            )

    def _finish_epoch(self, progress: Progress, curves: Curves | None, train: dict[str, float]) -> None:
        validation = self.validate(self.net)
        score = validation.score if math.isfinite(validation.score) else -math.inf
        # The first one has to do where no score is a number.
        if self.keep_last or progress.best_epoch < 0 or score > progress.best_score:
            progress.best_score, progress.best_epoch = score, progress.epoch
            self.run.save_weights(self.run.selected_file.name, self.net)
        record = {
            "phase": progress.phase,
            "epoch": progress.epoch,
            "lr": self._optimizer.param_groups[0]["lr"],
            "seconds": round(progress.seconds, 3),
            **{f"train_{name}": value for name, value in train.items()},
            **{f"train_{name}": value for name, value in (self.drive.metrics() if self.drive else {}).items()},
            **{f"validation_{name}": value for name, value in validation.metrics.items()},
        }
        self._means = StepMeans()
        # The line first: a kill in between repeats the epoch, and rewinding drops the line.
        self.run.append_metrics(record)
        self.save(progress)
        if curves is None:
            return
        points = {name: value for name, value in record.items() if name not in ("phase", "epoch")}
        curves.add({f"phase{progress.phase}/{name}": value for name, value in points.items()}, progress.epoch)
        shown = " ".join(f"{name} {value:.4f}" for name, value in record.items() if name.startswith(("train", "valid")))
        tqdm.write(f"epoch {progress.epoch}/{self.epochs} {shown} ({progress.seconds:.0f} s)", file=sys.stderr)

    def save(self, progress: Progress) -> None:
        """Save all that ``__call__`` needs to go on from ``progress``."""
        self.run.save_state(
            {
                "progress": asdict(progress),
                "network": self.net.state_dict(),
                "optimizer": self._optimizer.state_dict(),
                "scaler": self._scaler.state_dict(),
                "objective": self.objective.state_dict(),
                "pressure": {} if self.drive is None else self.drive.pressure.state_dict(),
                "sums": self._means.sums,
                "extra": json.dumps(self.extra_state),
            }
        )
        self._saved = time.monotonic()

    def _load(self, state: dict[str, Any]) -> None:
        self.net.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        self.objective.load_state_dict(state["objective"])
        if self.drive is not None:
            self.drive.pressure.load_state_dict(state["pressure"])
        self._means = StepMeans({name: value.to(self.device) for name, value in state["sums"].items()})
