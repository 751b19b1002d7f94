"""A training in a run folder, as all stages have it: resumable at every step, selecting on the validation split."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from torch import nn
from tqdm import tqdm

from hybridprune.ambient import reseed, seeded
from hybridprune.config import OptimOptions
from hybridprune.data import Batch, TrainBatches
from hybridprune.engine.batchnorm import synchronised
from hybridprune.engine.compile_mode import arranged
from hybridprune.engine.compile_times import CompileTimes
from hybridprune.engine.compiler import Switch
from hybridprune.engine.curves import Curves
from hybridprune.engine.descent import Descent
from hybridprune.engine.divergence import check_losses
from hybridprune.engine.freeze import frozen_parameters
from hybridprune.engine.interrupt import deferred_interrupt
from hybridprune.engine.loop import Loop
from hybridprune.engine.objective import Objective
from hybridprune.engine.parallel import share_weights
from hybridprune.engine.pressure import Drive, parameter_groups
from hybridprune.engine.progress import Progress, Validation
from hybridprune.engine.rates import lr_factors
from hybridprune.engine.schedule import factor
from hybridprune.engine.step_means import StepMeans
from hybridprune.engine.weight_average import WeightAverage
from hybridprune.errors import Interrupted, UserError
from hybridprune.models.routed import RoutedNetwork
from hybridprune.models.shakedrop import ShakeDrop
from hybridprune.precision import Precision, tf32
from hybridprune.processes import count, is_first, json_from_first, largest, rank
from hybridprune.progress_bar import bar
from hybridprune.store.run_folder import RunFolder
from hybridprune.store.seeds import stream_seed

N = TypeVar("N", bound=RoutedNetwork)
GO_ON = "the state is saved; give the same command with --resume to go on"
AVERAGED = "averaged_"
"""Begins the names of the averaged weights' figures."""
SAVE = 1
"""A wish to save within an epoch; signals, which are larger numbers, also end the training."""


@dataclass
class Fit(Generic[N]):
    """One training of ``net``: what is fixed while it runs.

    Several processes do the same steps, each on its share of every batch. What they save is the state of all: it can
    be resumed by any number of them.
    """

    run: RunFolder
    net: N
    objective: Objective
    batches: TrainBatches
    validate: Callable[[N], Validation]
    optim: OptimOptions
    epochs: int
    device: torch.device
    log_interval: int
    save_every: float = 0.0
    """Minutes after which the state is saved within an epoch; 0: only between epochs."""
    compile: str = "off"
    """Whether ``switch`` is compiled: ``off``, ``on`` or ``auto``."""
    switch: Switch | None = None
    """What the objective learns from; by default it is passes through ``net``."""
    lr_factor: float = 1.0
    """This training's learning rate over that of ``optim``; not part of the saved state."""
    frozen: Collection[str] = ()
    """Names of the parameters of ``net`` that are not trained."""
    gate_lr_factor: float = 1.0
    """The gates' learning rate over that of all else."""
    gate_grad_norm: float | None = None
    """Largest norm of the gates' gradient in one step."""
    extra_state: dict[str, Any] = field(default_factory=dict)
    """Kept in the saved state for the stage: what rebuilds the network, for example its edits."""
    train_mode: Callable[[N], object] = nn.Module.train
    """Puts the network into the mode of a training step."""
    sync_batchnorm: bool = False
    """Whether BatchNorm sees the whole batch of all processes."""
    drive: Drive | None = None
    """What drives the training towards sparsity."""
    keep_last: bool = False
    """The last epoch's weights are the selected ones, averaged if they are, and not the best on validation."""
    ema_decay: float = 0.0
    """Decay of the moving average of the weights, by which the best ones may be averages; 0: there is none."""

    def __post_init__(self) -> None:
        gates, body = list(self.net.gate.parameters()), self.net.body
        descent = Descent(
            self.net,
            # A group may be empty: not every network has gates.
            [
                *parameter_groups(
                    self._trained(body), self.drive, lr_factors=lr_factors(self.net.get_submodule(body), body)
                ),
                *parameter_groups(self._trained("gate"), None, self.gate_lr_factor),
            ],
            self.device,
            lr=self.optim.lr * self.lr_factor,
            momentum=self.optim.momentum,
            weight_decay=self.optim.weight_decay,
            schedule=partial(factor, self.optim.scheduler_id, self.optim.scheduler_params),
            steps=self.epochs * len(self.batches),
            drive=self.drive,
            clip=None if (norm := self.gate_grad_norm) is None else lambda: nn.utils.clip_grad_norm_(gates, norm),
            fp16=self.optim.precision == "fp16",
        )
        self._remedy = f"start anew with a lower --lr (now {self.optim.lr}) and another --exp_name"
        self._loop = Loop(self.objective, descent, len(self.batches), self._remedy, joined=True)
        self._average: WeightAverage[N] | None = None
        self._saved = time.monotonic()

    def _trained(self, part: str) -> list[tuple[str, nn.Parameter]]:
        named = self.net.get_submodule(part).named_parameters(prefix=part)
        return [(name, parameter) for name, parameter in named if name not in self.frozen]

    def __call__(self, progress: Progress, state: dict[str, Any] | None) -> Progress:
        """Train from ``progress`` (and the saved ``state`` that belongs to it) to the last epoch.

        Leaves the best weights on validation in selected.safetensors and the last ones in last.safetensors.
        Raises RunFailed when the loss is not finite, or the validation loss where `check_losses` minds it, UserError
        when an image cannot be read, and Interrupted on Ctrl-C or SIGTERM, all with the state saved.
        """
        if state is not None:
            self.net.load_state_dict(state["network"])
            self._loop.load_state_dict(state)
        share_weights(self.net)
        if self.ema_decay:
            self._average = WeightAverage(self.net, self.ema_decay)
            if state is not None and "average" in state:  # not in one from before the first step
                self._average.load_state_dict(state["average"])
        self.run.rewind_metrics(progress.phase, progress.epoch if progress.step or progress.epoch else -1)
        with (
            seeded(0, self.device),  # every step has its own
            frozen_parameters(self.net, self.frozen),
            deferred_interrupt() as wished,
            Curves(self.run.path / "tb") if is_first() else nullcontext() as curves,
            synchronised(self.net) if self.sync_batchnorm else nullcontext(),
        ):
            passes = Precision.of(self.optim.precision, self.device)
            switch = self.switch or Switch(self.net)
            forward = passes(self.net if self.switch is not None or self.compile == "off" else switch)
            left = (self.epochs - progress.epoch) * len(self.batches) - progress.step
            self._loop.trial = arranged(self.compile, switch, self.device, self._compile_times, left)

            def wish() -> int:
                due = 0 < 60 * self.save_every <= time.monotonic() - self._saved
                return largest(wished() or SAVE * due)

            if progress.epoch == 0 and progress.step == 0:
                self._finish_epoch(progress, curves, {})
            while progress.epoch < self.epochs and wish() <= SAVE:
                with tf32(self.optim.tf32 and self.device.type == "cuda"):
                    self._epoch(forward, progress, wish)
                progress.epoch, progress.step = progress.epoch + 1, 0
                self._finish_epoch(progress, curves, self._loop.means.read())
            if (signum := wish()) > SAVE:  # while validating
                raise Interrupted(GO_ON, signum)
        self.run.save_weights("last.safetensors", self.net)
        losses = dict(json_from_first(lambda: self._validation_losses(progress)))
        if (warning := check_losses(losses, progress.best_epoch, self._remedy)) is not None and is_first():
            print(warning, file=sys.stderr)
        return progress

    def _compile_times(self) -> CompileTimes:
        how = {
            "precision": self.optim.precision,
            "tf32": str(self.optim.tf32),
            "loss": type(self._loop.objective).__name__,
        }
        return CompileTimes.of(self.net, self.device, **how)

    def _validation_losses(self, progress: Progress) -> list[tuple[int, float | None]]:
        """Epochs of this training and their validation losses, None where one is not finite; no others are told.

        At the selected epoch it is the loss of the weights that were selected.
        """

        def name(line: dict[str, Any]) -> str:
            averaged = progress.best_averaged and line["epoch"] == progress.best_epoch
            return f"validation_{AVERAGED if averaged else ''}loss"

        lines = [line for line in self.run.read_metrics() if line.get("phase") == progress.phase]
        return [(line["epoch"], line[name(line)]) for line in lines if name(line) in line]

    def _epoch(self, forward: Any, progress: Progress, wish: Callable[[], int]) -> None:
        self.train_mode(self.net)
        steps = len(self.batches)
        started = time.monotonic() - progress.seconds
        description = f"epoch {progress.epoch + 1}/{self.epochs}"
        with bar(description=description, total=steps, start=progress.step) as shown:
            for _ in self._loop(forward, self._batches(progress), progress.epoch * steps + progress.step):
                progress.step += 1
                if self._average is not None:
                    self._average.update()
                shown.update()
                if progress.step % self.log_interval == 0:
                    shown.set_postfix({name: f"{value:.4f}" for name, value in self._loop.read().items()})
                if wished := wish():
                    self._read()
                    progress.seconds = time.monotonic() - started
                    self.save(progress)
                    if wished > SAVE:
                        raise Interrupted(GO_ON, wished)
        self._read()
        progress.seconds = time.monotonic() - started

    def _read(self) -> None:
        """Wait for the device, and make what is about to be saved or validated that of all processes."""
        self._loop.read()
        if self._average is not None:
            self._average.join()

    def _batches(self, progress: Progress) -> Iterator[Batch]:
        try:
            for batch in self.batches.epoch(progress.phase * 100_000 + progress.epoch, progress.step):
                self._place(progress, batch)
                yield batch
        except UserError as error:  # a streamed image cannot be read
            # Several processes: the others are in the middle of a step, so what the last epoch saved has to do.
            if count() == 1 and progress.step:
                self._loop.read()
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

    def _finish_epoch(self, progress: Progress, curves: Curves | None, train: dict[str, float]) -> None:
        candidates = {"": self.net}
        if self._average is not None and progress.epoch > 0:  # before, it is the network itself
            candidates[AVERAGED] = self._average.net
        found: dict[str, float] = {}
        for kind, net in candidates.items():
            validation = self.validate(net)
            found |= {f"validation_{kind}{name}": value for name, value in validation.metrics.items()}
            score = validation.score if math.isfinite(validation.score) else -math.inf
            # The first one has to do where no score is a number.
            if self.keep_last or progress.best_epoch < 0 or score > progress.best_score:
                progress.best_score, progress.best_epoch = score, progress.epoch
                progress.best_averaged = kind == AVERAGED
                self.run.save_weights(self.run.selected_file.name, net)
        record = {
            "phase": progress.phase,
            "epoch": progress.epoch,
            "lr": self._loop.descent.optimizer.param_groups[0]["lr"],
            "seconds": round(progress.seconds, 3),
            **{f"train_{name}": value for name, value in train.items()},
            **{f"train_{name}": value for name, value in (self.drive.metrics() if self.drive else {}).items()},
            **found,
        }
        self._loop.means = StepMeans()
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
                **self._loop.state_dict(),
                **({} if self._average is None else {"average": self._average.state_dict()}),
                "extra": json.dumps(self.extra_state),
            }
        )
        self._saved = time.monotonic()
