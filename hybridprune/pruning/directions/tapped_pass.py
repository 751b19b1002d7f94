"""A batch's way through a network, which is tapped at one layer after the other."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hybridprune.hooks import attached
from hybridprune.nested import tensors_in
from hybridprune.pruning.directions.continued_pass import PassMemory
from hybridprune.pruning.directions.joints import Joint, summands
from hybridprune.pruning.prunable import Run


class Seen(NamedTuple):
    """A layer's input or output in a pass, and its addend."""

    value: Tensor
    """Its input, or its output."""
    addend: Tensor | None
    """What its output is added to."""


@dataclass(frozen=True)
class TappedPass:
    """The pass of ``images`` through ``model``, layer by layer in the order in which these run.

    Nothing runs that comes after a tapped layer (and the sum that its output enters), and what came before it is not
    computed again (`PassMemory`), unless the pass cannot be continued.
    """

    model: nn.Module
    images: Any
    run: Run
    memory: PassMemory = field(default_factory=PassMemory)

    def input_of(self, name: str, joint: Joint) -> Seen:
        """A layer's input, and its addend; the layer may change before the next tap."""
        return self._tapped(lambda: self._tap(name, joint, before=True))

    def output_of(self, name: str, joint: Joint) -> Seen:
        """A layer's output, and its addend."""
        return self._tapped(lambda: self._tap(name, joint, before=False))

    @property
    def nbytes(self) -> int:
        """Bytes that it takes in memory while it is at rest."""
        held = (*tensors_in(self.images), *self.memory.held())
        return sum({each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in held}.values())

    def _tapped(self, tap: Callable[[], Seen]) -> Seen:
        if self.memory.marked:
            try:
                seen = tap()
                if not any(tensor is not None and tensor.is_meta for tensor in seen):
                    return seen
            except Exception:  # of any kind: code that is run on stand-ins may raise what it likes
                pass
            self.memory.forget()
        return tap()

    def _tap(self, name: str, joint: Joint, before: bool) -> Seen:
        layer = self.model.get_submodule(name)
        branch = layer if joint.norm is None else self.model.get_submodule(joint.norm)
        seen: list[Tensor] = []
        watch = _UntilSum(lambda: None if before else self.memory.mark())

        def keep_input(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            self.memory.mark()
            seen.append(args[0])
            if not joint.added:
                raise _Reached

        def keep_output(module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
            seen.append(y)
            if not joint.added:
                self.memory.mark()
                raise _Reached

        def follow(module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
            watch.branch = y

        handles = [layer.register_forward_pre_hook(keep_input) if before else layer.register_forward_hook(keep_output)]
        if joint.added:
            handles.append(branch.register_forward_hook(follow))
        with attached(handles), suppress(_Reached), watch, self.memory:
            self.run(self.model, self.images)
        return Seen(seen[0], watch.addend)


class _Reached(Exception):
    """All has been seen; what follows is not needed."""


class _UntilSum(TorchFunctionMode):
    """Ends a pass where a tensor is added to another one."""

    def __init__(self, reached: Callable[[], None]) -> None:
        super().__init__()
        self.reached = reached
        self.branch: Tensor | None = None
        self.addend: Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.branch is not None:
            for one, other in summands(func, args, kwargs):
                if one is self.branch:
                    self.addend = other
                    self.reached()
                    raise _Reached
        return func(*args, **(kwargs or {}))
