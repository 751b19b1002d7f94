# pyright: strict, reportUnnecessaryIsInstance=false
"""Whether images are on the scale that a network was trained on, as its first BatchNorm tells."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, cast

from torch import Tensor, nn

from hybridprune.errors import UserError

FACTOR = 30.0
"""Standard deviations that differ by more are on another scale; 0..255 in the place of 0..1 is a factor of 255."""


class FirstNorm:
    """The first BatchNorm with statistics of a training that runs, and the spread of what it gets."""

    def __init__(self) -> None:
        self._name: str | None = None
        self._ratio = 1.0

    def look(self, name: str, norm: Any, inputs: tuple[Tensor, ...]) -> None:
        """Take note of the median, over the channels, of the standard deviation of the input over the trained one."""
        if self._name is not None or not norm.num_batches_tracked:
            return
        spread = inputs[0].float().transpose(0, 1).flatten(1).var(dim=1, correction=0)
        self._name = name
        self._ratio = float((spread / norm.running_var.float().clamp_min(norm.eps)).median().sqrt())

    def check_scale(self) -> None:
        """UserError if they are far apart. Where nothing varies, in blank images say, nothing can be told."""
        if self._ratio > 0 and not 1 / FACTOR < self._ratio < FACTOR:
            raise UserError(
                f"the inputs are on another scale than those that the network was trained on: in front of {self._name} "
                f"they vary {self._ratio:.3g} times as much; give them as in training, e.g. images / 255, normalised"
            )


@contextmanager
def first_norm(model: nn.Module) -> Generator[FirstNorm]:
    """Inside, what ``model`` runs is looked at."""
    found = FirstNorm()
    with ExitStack() as hooks:
        for name, module in cast("Iterable[tuple[str, nn.Module]]", model.named_modules()):
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) and module.track_running_stats:
                hooks.callback(module.register_forward_pre_hook(partial(found.look, name)).remove)
        yield found
