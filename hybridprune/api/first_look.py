# pyright: strict, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnnecessaryIsInstance=false
"""A user's loader and network as they are together: what does not fit is told in one line, before anything is done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.data import DataLoader, Dataset, IterableDataset

from hybridprune.ambient import seeded
from hybridprune.api.input_scale import first_norm
from hybridprune.api.mended_loss import mended_loss
from hybridprune.batch import Batch
from hybridprune.curvature import Likelihood
from hybridprune.curvature.likelihood import UserLoss
from hybridprune.curvature.passes import is_usable
from hybridprune.engine.device import check_kind
from hybridprune.engine.modes import kept_modes
from hybridprune.engine.plain import in_single, plain_copy
from hybridprune.engine.sampling import sampled
from hybridprune.errors import RunFailed, UserError
from hybridprune.nested import images_in, on_device, some_images, with_tensors

Loader = Iterable[Any]
"""Batches, gone through several times."""


@dataclass(frozen=True)
class Task:
    """The task of a network: how it is run on a batch of a loader, and what its outputs should be."""

    likelihood: Likelihood
    forward: Callable[[nn.Module, Any], Any] | None = None
    """``forward(model, batch)`` of the whole batch; None: ``model(inputs)`` of a batch of inputs and targets."""

    def run(self, model: nn.Module, inputs: Any) -> Any:
        """The network's output on what `split` gives, of which it gets a copy: some networks change their input."""
        inputs = with_tensors(inputs, Tensor.clone)
        return model(inputs) if self.forward is None else self.forward(model, inputs)

    def output(self, model: nn.Module, inputs: Any) -> Any:
        """The network's output as of `run`; UserError where the network fails on a batch."""
        return _tried(lambda: self.run(model, inputs), "the network fails on a batch", "give batches that it takes")

    def split(self, batch: Any) -> tuple[Any, Any]:
        """Inputs of the network and targets of the loss in a batch; UserError if the batch is of another kind."""
        if self.forward is None and not (_is_pair(batch) and isinstance(batch[0], Tensor)):
            numpy = _is_pair(batch) and isinstance(batch[0], np.ndarray)
            raise UserError(
                f"a batch is {_described(batch)}, not a pair of inputs and targets of which the inputs are a tensor; "
                + ("convert both with torch.from_numpy" if numpy else "give forward=, a function of (model, batch)")
            )
        if isinstance(self.likelihood, UserLoss):
            return (batch if self.forward is not None else batch[0]), batch
        if not isinstance(batch, list | tuple) or len(batch) < 2:
            raise UserError(
                f"a batch is {_described(batch)}, whose second item is not the targets; give loss=, a function of "
                "(output, batch)"
            )
        return (batch if self.forward is not None else batch[0]), batch[1]


@dataclass(frozen=True)
class Batches:
    """A loader's batches of inputs and targets, on a device, each of them looked at before it is used."""

    loader: Loader
    task: Task
    device: torch.device
    classes: int
    """The second size of the outputs; 0 if there is none."""
    kind: str = "batch"
    """What one of them is called."""

    def __iter__(self) -> Iterator[Batch]:
        empty = True
        for batch in self.raw():
            empty = False
            inputs, targets = self.task.split(batch)
            yield Batch(*(in_single(on_device(part, self.device)) for part in (inputs, targets)))
        if empty:
            raise UserError("the loader gives no batches; give one that is not empty, however often it is gone through")

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]

    def raw(self) -> Looked:
        """The batches as the loader gives them."""
        return Looked(self.loader, self.task, self.classes, self.kind)

    def check_output(self, model: nn.Module) -> None:
        """RunFailed if the output of ``model`` for the first batch, in single precision and eval mode, is not finite.

        Finite weights do not say so: those of a training that went astray multiply to infinity.
        """
        inputs, _ = self.task.split(_first(self.loader))
        with torch.no_grad():
            output = self.task.output(plain_copy(model).eval(), in_single(on_device(inputs, self.device)))
        if not is_usable(output):
            raise RunFailed("the pruned network's output is not finite; fine-tune at a lower lr")

    def sample(self, images: int, seed: int) -> Batches:
        """Random images of the whole loader, so many or all if there are fewer; see `sampled`."""
        # A plain DataLoader is not gone through for that.
        loader = self.loader if type(self.loader) is DataLoader else self.raw()
        return replace(self, loader=sampled(loader, images, seed), kind="sampled batch")


@dataclass(frozen=True)
class Looked:
    """The batches of a loader, each of them looked at."""

    loader: Loader
    task: Task
    classes: int
    kind: str

    def __iter__(self) -> Iterator[Any]:
        for number, batch in enumerate(self.loader, start=1):
            _check(self.task, batch, f"{self.kind} {number}", self.classes)
            yield batch

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]


def look(model: nn.Module, loader: Loader, task: Task) -> tuple[Batches, Any]:
    """The loader's batches for the model and, of the first one, what the network reads of its first image alone.

    Raises UserError if the loader, its first batch, the network's output on it (in eval mode) or the loss of that is
    not as it should be. The model is left as it is.
    """
    device = device_of(model)
    first = _first(loader)
    held = _check(task, first, "the first batch")
    inputs, targets = (in_single(on_device(part, device)) for part in task.split(first))
    example = some_images(inputs, [0])
    remedy = "mend forward=, or the batches" if task.forward else "give batches that it takes, or forward="
    if isinstance(inputs, Tensor) and not inputs.is_floating_point():
        kind = str(inputs.dtype).removeprefix("torch.")
        remedy += f"; its inputs are {kind}: images need the type and the scale that the network was trained on"
    with torch.no_grad(), kept_modes(model), first_norm(model) as norm:
        model.eval()
        output = _tried(lambda: task.run(model, inputs), "the network fails on the first batch", remedy)
        norm.check_scale()
        if any(module.training for module in model.modules()):
            raise UserError("forward= leaves the network in training mode; let it restore the mode that it found")
        shape = output.shape if isinstance(output, Tensor) else None
        task.likelihood.check(shape, targets)
        if shape and shape[0] % held and not isinstance(task.likelihood, UserLoss):
            raise UserError(
                f"the output for {held} images is {list(shape)}; images come first in inputs and outputs, so transpose "
                "them with forward="
            )
        if not is_usable(output):
            raise UserError("the network's output for the first batch is not finite; give one with weights that work")
        remedy = mended_loss(task.likelihood)
        loss = _tried(lambda: task.likelihood.loss(output, targets), "the loss of the first batch fails", remedy)
        if not bool(loss.isfinite()):
            raise UserError(f"the loss of the first batch is {loss.item()}; look at its targets")
        remedy = "the work of one image has to be counted; mend forward=, or the network"
        _tried(lambda: task.run(model, example), "the network fails on the first image of a batch alone", remedy)
    classes = shape[1] if shape is not None and len(shape) > 1 else 0
    return Batches(loader, task, device, classes), example


def device_of(model: nn.Module) -> torch.device:
    """The device of the parameters, a CPU or a GPU; UserError for other places, or if none has a shape."""
    parameters = list(model.parameters())
    if not parameters:
        raise UserError(f"{type(model).__name__}: has no parameters, so nothing can go; give another network")
    if any(is_lazy(parameter) for parameter in parameters):
        raise UserError(f"{type(model).__name__}: has lazy layers without a shape; run it on a batch first")
    return check_kind(parameters[0].device, f"{type(model).__name__} is on")


def _first(loader: Loader) -> Any:
    """The first batch."""
    if not isinstance(loader, Iterable) and not hasattr(loader, "__getitem__"):
        raise UserError(f"the loader is {_described(loader)}; give a DataLoader, or a list of batches")
    if isinstance(loader, Dataset) and not isinstance(loader, IterableDataset):
        raise UserError(f"the loader is a data set ({type(loader).__name__}), not batches; give a DataLoader of it")
    if isinstance(loader, DataLoader):
        _check_repeats(cast(Any, loader).dataset)
    iterator = iter(loader)
    if iterator is loader:
        raise UserError(
            f"the loader is a {type(loader).__name__}, which can be gone through once; give a DataLoader, or a list"
        )
    for batch in iterator:
        return batch
    raise UserError("the loader gives no batches; give one that is not empty")


def _check_repeats(dataset: Dataset[Any]) -> None:
    """UserError for a stream of images that does not start again: all its iterators are one."""
    if not isinstance(dataset, IterableDataset):
        return
    with seeded(0):  # whatever it draws to start, what it gives later is not changed by that
        again = iter(dataset) is iter(dataset)
    if again:
        raise UserError(
            f"the loader's data set ({type(dataset).__name__}) can be gone through once, __iter__ gives the same "
            "iterator each time; let it start a new one, or give a list of batches"
        )


def _check(task: Task, batch: Any, name: str, classes: int | None = None) -> int:
    """How many images a batch holds; UserError if it is not as it should be for outputs ``[B, classes, ...]``."""
    try:
        inputs, targets = task.split(batch)
        held = images_in(inputs)
        if held is None or (held == 0 and classes is None):
            raise UserError(
                f"a batch is {_described(batch)}, which does not say how many images it holds; give batches of "
                "tensors, or of lists as long as there are images"
            )
        if task.forward is None and inputs.is_floating_point() and not bool(inputs.isfinite().all()):
            raise UserError("its inputs are not finite (NaN or infinite); leave such images out")
        if classes is not None and not isinstance(task.likelihood, UserLoss):
            if not isinstance(targets, Tensor):
                raise UserError(f"its targets are {_described(targets)}, not a tensor as before")
            if task.forward is None and images_in(targets) != held:
                raise UserError(f"it has {held} inputs and {images_in(targets)} targets; give one for each")
            task.likelihood.check_values(targets, classes)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    return held


def _tried(work: Callable[[], Any], failure: str, remedy: str) -> Any:
    """What the user's code gives; whatever it raises becomes one line."""
    try:
        return work()
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        said = (str(error).strip().splitlines() or [""])[0][:200]
        raise UserError(f"{failure} ({type(error).__name__}: {said}); {remedy}") from error


def _is_pair(batch: Any) -> bool:
    return isinstance(batch, list | tuple) and len(batch) == 2


def _described(value: Any) -> str:
    kind = type(value).__name__
    if isinstance(value, list | tuple):
        return f"a {kind} of {len(value)} ({', '.join(type(item).__name__ for item in value[:4])})"
    if isinstance(value, dict):
        return f"a dict of {', '.join(map(repr, list(value)[:4]))}"
    return f"a {kind}"
