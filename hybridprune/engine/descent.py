"""Stochastic gradient descent: the step that every training takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hybridprune.engine.parallel import average_gradients
from hybridprune.engine.pressure import Drive, Step


@dataclass
class Descent:
    """Stochastic gradient descent with Nesterov momentum on the parameters of ``net``, resumable between two steps.

    A step moves each parameter ``p`` of a gradient ``g``, averaged over the processes, by
    ``v <- momentum v + g + weight_decay p`` and ``p <- p - lr (g + weight_decay p + momentum v)``.
    """

    net: nn.Module
    groups: list[dict[str, Any]]
    """The parameters that are trained, from `parameter_groups`."""
    device: torch.device
    lr: float
    momentum: float
    weight_decay: float
    schedule: Callable[[float], float]
    """The learning rate over ``lr`` at a share of the training in [0, 1]."""
    steps: int
    """Of the whole training."""
    rate_at: float = 0.0
    """Where in a step its learning rate is read off the schedule: 0 at its start, 0.5 in its middle."""
    drive: Drive | None = None
    """What drives the training towards sparsity."""
    clip: Callable[[], object] | None = None
    """Bounds the gradients, once they are all there."""
    fp16: bool = False
    """Whether passes are in float16, in which small gradients vanish unless the loss is scaled."""

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.SGD(
            self.groups,
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.momentum > 0,
        )
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=self.fp16)

    def step(self, loss: Tensor, weight: float, number: int) -> None:
        """Step ``number`` (from 0) down the gradient of ``loss`` (0-d), ``weight`` times that of a whole batch."""
        rate = self._rate(number)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        self._differentiate(loss, weight)
        if self.drive is not None or self.clip is not None:
            self._scaler.unscale_(self.optimizer)
        if self.drive is not None:
            self.drive.pressure.add_gradients(number / self.steps)
        if self.clip is not None:
            self.clip()
        self._move()

    def follow(self, loss: Callable[[], Tensor], weight: float, number: int) -> None:
        """Let the drive do what it does after step ``number``; ``loss`` computes that of the same batch anew."""
        if self.drive is not None and self.drive.after_step is not None:
            trial = partial(self._trial, loss, weight)
            self.drive.after_step(Step(self._rate(number), (number + 1) / self.steps, trial))

    @contextmanager
    def _trial(self, loss: Callable[[], Tensor], weight: float) -> Iterator[None]:
        momenta = [state["momentum_buffer"] for state in self.optimizer.state.values() if "momentum_buffer" in state]
        kept = [each for each in (*self.net.state_dict().values(), *momenta) if each is not None]
        before = [each.clone() for each in kept]
        try:
            self._differentiate(loss(), weight)
            self._move()
            yield
        finally:
            with torch.no_grad():
                for tensor, value in zip(kept, before, strict=True):
                    tensor.copy_(value)

    def _rate(self, number: int) -> float:
        return self.lr * self.schedule((number + self.rate_at) / self.steps)

    def _differentiate(self, loss: Tensor, weight: float) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(loss if weight == 1 else loss * weight).backward()
        average_gradients(self.net.parameters())

    def _move(self) -> None:
        self._scaler.step(self.optimizer)
        self._scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """The state that a resumed training needs."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "pressure": {} if self.drive is None else self.drive.pressure.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a ``state_dict``."""
        self.optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        if self.drive is not None:
            self.drive.pressure.load_state_dict(state["pressure"])
