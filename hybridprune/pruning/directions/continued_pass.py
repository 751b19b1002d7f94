"""Forward passes that stop at a layer and go on from there another time, whatever the network's code is.

Python cannot leave a function in the middle and come back. A pass that goes on runs the network's code from its start,
but computes nothing up to the place where it stopped: each of torch's functions gives what it gave before. Of tensors
that are still in use there that is the tensor itself. For all others one without content (on the meta device) stands
in, and their memory is free. So between two stops a pass costs what lies between them.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only


class OtherWay(RuntimeError):
    """A pass took another way than before: what is remembered of it is of no use."""


@dataclass(eq=False)
class _Result:
    """A tensor that a function gave."""

    tensor: weakref.ref[Tensor]
    shape: torch.Size
    dtype: torch.dtype
    held: Tensor | None = None
    """The tensor, while its pass is at rest and still needs it."""
    stand_in: Tensor | None = None

    def again(self) -> Tensor:
        """What the function gives when the pass is repeated."""
        if self.held is not None:
            return self.held
        if self.stand_in is None:
            self.stand_in = torch.empty(self.shape, dtype=self.dtype, device="meta")
        return self.stand_in


@dataclass(frozen=True)
class _Call:
    function: Any
    result: Any
    """What it gave, with a `_Result` for each tensor of this pass."""
    of_tensors: bool
    """Whether it took or gave a tensor. Others, such as switches of torch's own, are called again."""


class PassMemory(TorchFunctionMode):
    """The memory of a pass: what its functions gave up to a mark. Inside, a pass repeats that, goes on, and marks anew.

    It has to be the innermost mode. Functions that torch tells modes nothing of (scripted ones) run again. A pass that
    thereby, or by what its network is, takes another way raises `OtherWay`, or ends with tensors on the meta device.
    Then `forget`, and begin anew.
    """

    def __init__(self) -> None:
        super().__init__()
        self.forget()

    def forget(self) -> None:
        """The next pass computes everything."""
        self.calls: list[_Call] = []
        self.results: dict[int, _Result] = {}
        self.marked = self.place = 0
        self.is_marked = False
        """Whether this pass has set its mark."""
        self.versions: list[int] = []
        """How often each held tensor had been changed in place at the mark."""

    def held(self) -> list[Tensor]:
        """The tensors that are kept for the next pass."""
        return [result.held for result in self.results.values() if result.held is not None]

    def mark(self) -> None:
        """Here, between two functions, the next pass goes on; once in a pass."""
        if self.place < self.marked:
            raise OtherWay("a mark in front of the last one")
        with torch._C.DisableTorchFunction():  # this is not a part of the pass
            self._check()
            for result in self.results.values():
                result.held = result.tensor()
            self.is_marked, self.marked, self.versions = True, len(self.calls), self._versions()

    def __enter__(self) -> PassMemory:
        self.place, self.is_marked = 0, False
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        del self.calls[self.marked :]
        if not self.is_marked:
            self.forget()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self.is_marked:
            if self.place < self.marked:
                return self._repeated(func, args, kwargs)
            if self.place == self.marked:
                self._release()
        result = func(*args, **kwargs)
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        noted = tree_map_only(Tensor, lambda tensor: self._noted(tensor, given), result)
        of_tensors = bool(given) or any(isinstance(value, Tensor) for value in tree_leaves(result))
        self.calls.append(_Call(func, noted, of_tensors))
        self.place += 1
        return result

    def _repeated(self, func: Any, args: Any, kwargs: Any) -> Any:
        call = self.calls[self.place]
        if call.function != func:
            raise OtherWay(f"{func} in the place of {call.function}")
        self.place += 1
        if not call.of_tensors:
            return func(*args, **kwargs)
        if isinstance(call.result, _Result):
            return call.result.again()
        return (
            tree_map_only(_Result, _Result.again, call.result) if isinstance(call.result, tuple | list) else call.result
        )

    def _release(self) -> None:
        """Where the pass goes on: what it still needs is in its own hands."""
        self._check()
        self.results = {key: result for key, result in self.results.items() if result.held is not None}
        for result in self.results.values():
            result.held = None
        self.versions = []

    def _check(self) -> None:
        if self.versions != self._versions():
            raise OtherWay("a tensor was changed by a function that torch does not tell of")

    def _noted(self, tensor: Tensor, given: list[Tensor]) -> _Result | Tensor:
        """The tensor that a function gave; one that it was ``given``, and no function before, is not of this pass."""
        found = self.results.get(id(tensor))
        if found is None or found.tensor() is not tensor:
            if any(tensor is each for each in given):
                return tensor
            found = self.results[id(tensor)] = _Result(weakref.ref(tensor), tensor.shape, tensor.dtype)
        return found

    def _versions(self) -> list[int]:
        return [0 if tensor.is_inference() else tensor._version for tensor in self.held()]
