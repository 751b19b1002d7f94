"""Joints: the norm behind a layer and the sum that its output enters, however the network's code says it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from hybridprune.hooks import attached
from hybridprune.pruning.prunable import Run

_ADDITIONS = {"add", "add_", "__add__", "__radd__", "__iadd__"}


@dataclass(frozen=True)
class Joint:
    """The way that the output of a layer goes."""

    norm: str | None = None
    """The BatchNorm with running statistics that takes it, and nothing else does."""
    added: bool = False
    """Whether it, or what the norm makes of it, goes into a sum with a tensor that was there before the layer ran, and
    nowhere else."""


def find_joints(model: nn.Module, names: Sequence[str], example: Any, run: Run) -> Mapping[str, Joint]:
    """The joint of each of the layers ``names``, which run once, as one pass of the example shows."""
    watch = _Survey()

    def start(name: str) -> Callable[..., None]:
        return lambda module, args, y: watch.start(name, y)

    def normalise(name: str) -> Callable[..., None]:
        return lambda module, args, y: watch.normalise(name, args, y)

    norms = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_var is not None
    }
    handles = [model.get_submodule(name).register_forward_hook(start(name)) for name in names]
    handles += [module.register_forward_hook(normalise(name)) for name, module in norms.items()]
    with attached(handles), watch:
        run(model, example)
    return {name: watch.joint(name) for name in names}


@dataclass(frozen=True)
class _Branch:
    layer: str
    since: int
    norm: str | None = None


@dataclass
class _Fate:
    """What has become of a layer's output so far."""

    joint: Joint = field(default_factory=Joint)
    uses: Counter[str | None] = field(default_factory=Counter)
    """How often the output (None) and what its norm made of it (by its name) was read."""


class _Survey(TorchFunctionMode):
    """Follows the outputs of layers through a pass.

    Tensors are known by their identity, so all of them are kept. One that is changed in place is a new one; a function
    that gives back what it got, as dropout does at rest, has not happened.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Tensor] = []
        self.born: dict[int, int] = {}
        self.branches: dict[int, _Branch] = {}
        self.fates: dict[str, _Fate] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for one, other in summands(func, args, kwargs):
            branch = self.branches.get(id(one))
            if branch is not None and self.born.get(id(other), 0) < branch.since:
                fate = self.fates[branch.layer]
                fate.joint = replace(fate.joint, norm=branch.norm, added=True)
        # A tensor's version counts its changes in place; those of inference mode have none.
        before = {id(each): each._version for each in args if isinstance(each, Tensor) and not each.is_inference()}
        result = func(*args, **(kwargs or {}))
        passed_on = id(result) in before and before[id(result)] == result._version
        if isinstance(result, Tensor) and not passed_on:
            for each in (*args, *(kwargs or {}).values()):
                if (branch := self.branches.get(id(each))) is not None:
                    self.fates[branch.layer].uses[branch.norm] += 1
            self._note(result)
        return result

    def start(self, name: str, y: Tensor) -> None:
        """A layer has run."""
        self._note(y)
        self.branches[id(y)] = _Branch(name, self.born[id(y)])
        self.fates[name] = _Fate()

    def normalise(self, name: str, args: tuple[Tensor, ...], y: Tensor) -> None:
        """A norm has run."""
        # Of [B, C, L] a linear layer's outputs are the last axis, and not that of the norm.
        branch = self.branches.get(id(args[0])) if args and args[0].ndim != 3 else None
        if branch is not None and branch.norm is None:
            self._note(y)
            self.branches[id(y)] = replace(branch, norm=name)
            fate = self.fates[branch.layer]
            fate.joint = replace(fate.joint, norm=name)

    def joint(self, name: str) -> Joint:
        """As far as nothing else reads the output."""
        fate = self.fates[name]
        if fate.uses[None] != 1:
            return Joint()
        alone = fate.joint.norm is None or fate.uses[fate.joint.norm] == 1
        return fate.joint if alone else replace(fate.joint, added=False)

    def _note(self, tensor: Tensor) -> None:
        self.kept.append(tensor)
        self.born[id(tensor)] = len(self.kept)
        self.branches.pop(id(tensor), None)


def summands(func: Any, args: Any, kwargs: Any) -> list[tuple[Tensor, Tensor]]:
    """Both orders of the two tensors of one shape that are about to be added; none if nothing of the kind is."""
    if getattr(func, "__name__", "") not in _ADDITIONS or len(args) != 2 or kwargs:
        return []
    a, b = args
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)) or a.shape != b.shape or a is b:
        return []
    return [(a, b), (b, a)]
