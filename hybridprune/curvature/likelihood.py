"""The loss of a network's outputs, and targets drawn from the distribution that the loss is the likelihood of."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridprune.errors import UserError

IGNORED = -100
"""The class id of what does not count, as in torch."""


class Likelihood(Protocol):
    """The likelihood of a network's outputs: it is trained with ``loss``, its curvature comes from ``sampled``.

    A loss is a mean over images, ``L = mean_n l_n``, and within an image as torch's function of that name takes it.
    """

    def loss(self, output: Any, targets: Any) -> Tensor:
        """L, 0-d. Raises UserError if the shapes do not fit."""
        ...

    def sampled(self, output: Any, targets: Any, generator: torch.Generator) -> Tensor | None:
        """A 0-d mean over images whose gradients image by image have, in expectation, the curvature of ``l_n``.

        ``E[g g^T] = J^T H J`` with J the derivative of the image's output in the parameters and H the Hessian of
        ``l_n`` in the output: the generalised Gauss-Newton matrix, which for these losses is the Fisher information
        (true Fisher) times a constant, so that an expected rise is one of the loss that is trained. Targets are drawn
        on the CPU, by the generator alone. None if there is nothing to draw from: the given targets' gradients have to
        do (empirical Fisher).
        """
        ...

    def divergence(self, student: Any, teacher: Any, temperature: float) -> Tensor:
        """The distance of the student's distribution from the teacher's, 0-d, in the units of the loss."""
        ...

    def check(self, shape: torch.Size | None, targets: Any) -> None:
        """UserError if these are no targets of outputs ``shape``, which is None where the output is no tensor."""
        ...

    def check_values(self, targets: Any, classes: int) -> None:
        """UserError if a target is out of range, where the outputs are ``[B, classes, ...]``."""
        ...


@dataclass(frozen=True)
class CrossEntropy:
    """Class ids (integers ``[B]``, ``[B, ...]``) of logits ``[B, K]`` or ``[B, K, ...]``: ``F.cross_entropy``.

    The mean is over all positions of all images but those with the id -100, so an image with fewer of them counts less.
    """

    def loss(self, output: Tensor, targets: Tensor) -> Tensor:
        """-log softmax of the given class, in nats."""
        return F.cross_entropy(output, self._ids(output.shape, targets).to(output.device))

    def sampled(self, output: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
        """The loss on targets that every position draws by its own softmax, sqrt(n) times with n positions an image."""
        given = self._ids(output.shape, targets).to(output.device)
        rows = output.detach().movedim(1, -1).flatten(0, -2).softmax(1).cpu()
        drawn = torch.multinomial(rows, 1, generator=generator).view(given.shape).to(output.device)
        drawn = torch.where(given == IGNORED, given, drawn)
        positions = (drawn != IGNORED).sum() / len(output)
        return positions.sqrt() * F.cross_entropy(output, drawn)

    def divergence(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """``temperature^2`` x the mean of ``KL(teacher || student)``: the square keeps the size of its gradient."""
        q, p = ((x.float() / temperature).log_softmax(1) for x in (student, teacher))
        positions = student[0, 0].numel()
        return temperature**2 * F.kl_div(q, p, reduction="batchmean", log_target=True) / positions

    def check(self, shape: torch.Size | None, targets: Any) -> None:
        """Ids in [0, K) or -100."""
        shape, targets = _tensors(shape, targets, "cross_entropy")
        if len(shape) < 2 or shape[1] < 2:
            raise UserError(
                f"loss 'cross_entropy': one output for each image ({_list(shape)}) has a constant softmax; give "
                "loss='bce' for yes or no, loss='mse' for a number"
            )
        self.check_values(self._ids(shape, targets), shape[1])

    def check_values(self, targets: Tensor, classes: int) -> None:
        """Ids in [0, K) or -100."""
        _check_ids(targets)
        outside = targets[((targets < 0) & (targets != IGNORED)) | (targets >= classes)]
        if len(outside):
            raise UserError(
                f"loss 'cross_entropy': class id {int(outside[0])} with {classes} outputs; give ids from 0 to "
                f"{classes - 1}, and {IGNORED} where nothing counts"
            )

    def _ids(self, shape: torch.Size, targets: Tensor) -> Tensor:
        _check_ids(targets, several=len(shape) == 2 and targets.shape == shape)
        wanted = (shape[0], *shape[2:])
        if (found := _aligned(targets, wanted)) is None:
            raise UserError(
                f"loss 'cross_entropy': outputs {_list(shape)} need class ids {_list(wanted)}, and the targets are "
                f"{_kind(targets)}; resize the ones or the others, e.g. with forward="
            )
        return found.long()


@dataclass(frozen=True)
class Bernoulli:
    """Yes or no, independently for each output: ``F.binary_cross_entropy_with_logits``, a mean over all of them.

    Logits and targets (in [0, 1]) of any equal shape ``[B, ...]``; ``[B]`` and ``[B, 1]`` are equal.
    """

    def loss(self, output: Tensor, targets: Tensor) -> Tensor:
        """-log of the probability of the given targets, in nats, over the number of outputs."""
        return F.binary_cross_entropy_with_logits(output, _same(output, targets, "bce"))

    def sampled(self, output: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
        """The loss on targets that every output draws by its own sigmoid, sqrt(D) times with D outputs an image."""
        del targets
        drawn = torch.bernoulli(output.detach().sigmoid().cpu(), generator=generator).to(output)
        return math.sqrt(output[0].numel()) * F.binary_cross_entropy_with_logits(output, drawn)

    def divergence(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """``temperature^2`` x the mean over images and outputs of KL between the two."""
        q, p = student.float() / temperature, teacher.float() / temperature
        yes = p.sigmoid() * (F.logsigmoid(p) - F.logsigmoid(q))
        no = (-p).sigmoid() * (F.logsigmoid(-p) - F.logsigmoid(-q))
        return temperature**2 * (yes + no).mean()

    def check(self, shape: torch.Size | None, targets: Any) -> None:
        """Numbers in [0, 1], one for each output."""
        shape, targets = _tensors(shape, targets, "bce")
        _fitting(shape, targets, "bce")
        self.check_values(targets)

    def check_values(self, targets: Tensor, classes: int = 0) -> None:
        """Numbers in [0, 1]."""
        outside = targets[~((targets >= 0) & (targets <= 1))]
        if len(outside):
            raise UserError(f"loss 'bce': target {outside.flatten()[0].item():g}; give numbers from 0 to 1")


@dataclass(frozen=True)
class Gaussian:
    """Numbers, with noise of one variance: ``F.mse_loss``, the mean of the squared errors of all outputs.

    Outputs and targets of any equal shape ``[B, ...]``; ``[B]`` and ``[B, 1]`` are equal.
    """

    def loss(self, output: Tensor, targets: Tensor) -> Tensor:
        """The mean of ``(output - target)^2`` over all outputs, 0-d, in squared units of the targets."""
        return F.mse_loss(output, _same(output, targets, "mse"))

    def sampled(self, output: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
        """The loss on targets scattered by a standard normal; with D outputs an image, sqrt(D / 2) times the loss."""
        del targets
        noise = torch.randn(output.shape, generator=generator, dtype=output.dtype).to(output.device)
        return math.sqrt(output[0].numel() / 2) * F.mse_loss(output, output.detach() + noise)

    def divergence(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """Mean squared distance; a temperature means nothing here."""
        del temperature
        return F.mse_loss(student.float(), teacher.float())

    def check(self, shape: torch.Size | None, targets: Any) -> None:
        """Finite numbers, one for each output."""
        shape, targets = _tensors(shape, targets, "mse")
        _fitting(shape, targets, "mse")
        self.check_values(targets)

    def check_values(self, targets: Tensor, classes: int = 0) -> None:
        """Finite numbers."""
        if not bool(targets.isfinite().all()):
            raise UserError("loss 'mse': a target is not finite; leave such images out")


@dataclass(frozen=True)
class UserLoss:
    """A function of the output, whatever it is, and of the whole batch that gives the mean loss over its images.

    Nothing can be drawn from it, so the curvature is that of the given targets (empirical Fisher).
    """

    function: Callable[[Any, Any], Tensor]

    def loss(self, output: Any, targets: Any) -> Tensor:
        """The number that the function returns; UserError if it is no single one."""
        value = self.function(output, targets)
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise UserError(
                f"loss: the function returned {_kind(value)}; return the mean over the images, one tensor of one number"
            )
        return value.reshape(())

    def sampled(self, output: Any, targets: Any, generator: torch.Generator) -> None:
        """There is nothing to draw from."""

    def divergence(self, student: Any, teacher: Any, temperature: float) -> Tensor:
        """Refused."""
        raise UserError("kd_weight: a function as loss says nothing of the distance between two outputs; give 0")

    def check(self, shape: torch.Size | None, targets: Any) -> None:
        """Anything goes."""

    def check_values(self, targets: Any, classes: int) -> None:
        """Anything goes."""


CROSS_ENTROPY = CrossEntropy()
NAMED: dict[str, Likelihood] = {"cross_entropy": CROSS_ENTROPY, "bce": Bernoulli(), "mse": Gaussian()}


def likelihood_of(loss: str | Callable[[Any, Any], Tensor]) -> Likelihood:
    """The likelihood of this name, or the one of a function ``loss(output, batch)``; UserError if it is neither."""
    if callable(loss):
        return UserLoss(loss)
    if not isinstance(loss, str) or loss not in NAMED:
        raise UserError(f"loss {loss!r}: give one of {', '.join(NAMED)}, or a function of (output, batch)")
    return NAMED[loss]


def _tensors(shape: torch.Size | None, targets: Any, loss: str) -> tuple[torch.Size, Tensor]:
    if shape is None or len(shape) == 0:
        raise UserError(
            f"loss {loss!r}: the network's output is no tensor [B, ...]; give a forward= that returns one, or a "
            "function as loss"
        )
    if not isinstance(targets, Tensor):
        raise UserError(
            f"loss {loss!r}: the targets are {_kind(targets)}; give a loader of (inputs, targets), both tensors, or a "
            "function as loss"
        )
    return shape, targets


def _check_ids(targets: Tensor, several: bool = False) -> None:
    """UserError if these are no class ids; ``several``: there is a number for each class."""
    if several or targets.is_floating_point() or targets.is_complex():
        raise UserError(
            f"loss 'cross_entropy': takes class ids, and the targets are {_kind(targets)}; give loss='bce' for "
            "several labels an image, loss='mse' for numbers, targets.argmax(1) for one-hot ids, targets.long() "
            "for other ids, or a function as loss"
        )


def _fitting(shape: torch.Size, targets: Tensor, loss: str) -> Tensor:
    found = None if targets.is_complex() else _aligned(targets, shape)
    if found is None:
        ids = ", loss='cross_entropy' for class ids" if not targets.is_floating_point() else ""
        raise UserError(
            f"loss {loss!r}: outputs {_list(shape)} need a target each, and the targets are {_kind(targets)}; give "
            f"these the outputs' shape{ids}"
        )
    return found


def _same(output: Tensor, targets: Tensor, loss: str) -> Tensor:
    return _fitting(output.shape, targets, loss).to(output)


def _aligned(targets: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    """The targets in this shape, if they differ by dimensions of size 1 behind the first one alone."""

    def essential(sizes: tuple[int, ...]) -> list[int]:
        return [*sizes[:1], *(size for size in sizes[1:] if size != 1)]

    return targets.reshape(shape) if essential(tuple(targets.shape)) == essential(tuple(shape)) else None


def _kind(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return f"{str(value.dtype).removeprefix('torch.')} {_list(value.shape)}"


def _list(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"
