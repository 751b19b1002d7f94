"""Tensors that claim to be on ``cuda:0`` and are computed on the CPU: what a GPU would refuse is seen without one.

A torch function mode tells Python what is claimed (``.device``, ``.to``, ``device=``). The operators that run, those of
backward passes and of foreign code included, are watched by a dispatch mode, which passes the claim on from inputs to
outputs and notes what a GPU would refuse. Values are real, so code that depends on them goes its real way.

Stricter than CUDA in one thing: an index on the CPU into a tensor on the GPU is refused too, since it waits and copies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from tests.devices.claimed_generator import draws_elsewhere
from tests.devices.device_rules import placed, refusals, tensors
from tests.devices.source_lines import function, line
from tests.devices.stand_ins import stand_ins
from tests.devices.storages import Storages

CUDA = torch.device("cuda:0")
_EXPORT = torch.export.export
_PARSE_TO: Any = torch._C._nn._parse_to  # type: ignore[attr-defined]


class MixedDevices(AssertionError):
    """What a GPU would have refused, one operator and its line in our code a line."""


@contextmanager
def claimed_cuda(forgetful: str | None = None, movers: set[str] | None = None) -> Iterator[torch.device]:
    """Inside, ``cuda:0`` is there; yields it, and raises MixedDevices at the end if anything would not run on a GPU.

    ``movers`` gets the functions of our package that put something on the device, as ``file (function)``; of what the
    one called ``forgetful`` puts there, all stays on the CPU: a mistake that has to be seen.
    """
    claims = _Claims(forgetful, movers)
    with ExitStack() as stack:
        for place, name, value in stand_ins(claims.functions.entered, claims.export):
            stack.enter_context(patch.object(place, name, value))
        stack.enter_context(_Operators(claims))
        stack.enter_context(claims.functions)
        yield CUDA
    if claims.refused:
        raise MixedDevices("\n".join(claims.refused.values()))


class _Functions(TorchFunctionMode):
    """What Python asks of torch."""

    def __init__(self, claims: _Claims) -> None:
        super().__init__()
        self._claims = claims
        self._asked = False
        """Whether a call is being answered: torch leaves the mode meanwhile."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._asked = True
        try:
            return self._claims.call(func, args, dict(kwargs or {}))
        finally:
            self._asked = False

    def entered(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """``run``, which calls Python again, with this mode on."""

        def with_mode(*args: Any, **kwargs: Any) -> Any:
            if not self._asked:
                return run(*args, **kwargs)
            self._asked = False
            try:
                with self:
                    return run(*args, **kwargs)
            finally:
                self._asked = True

        return with_mode


class _Operators(TorchDispatchMode):
    """What torch runs."""

    supports_higher_order_operators = True

    def __init__(self, claims: _Claims) -> None:
        super().__init__()
        self._claims = claims

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not isinstance(func, torch._ops.OpOverload):  # the branches of an exported program, which is on the CPU
            return func(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            return self._claims.run(func, args, kwargs)


class _Move(torch.autograd.Function):
    """A copy on another device, whose gradient is moved back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, claims: _Claims, device: str) -> Tensor:
        ctx.claims, ctx.back = claims, claims.device(x)
        return claims.copied(x, device)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return ctx.claims.move(gradients[0], ctx.back), None, None


class _Claims:
    """What is claimed, and what was refused."""

    def __init__(self, forgetful: str | None, movers: set[str] | None) -> None:
        self._forgetful, self._movers = forgetful, movers
        self.refused: dict[tuple[str, str], str] = {}
        """By operator and line: the first time that it was."""
        self.functions = _Functions(self)
        self._storages = Storages()
        self.device = self._storages.device
        self._forced: str | None = None
        """The device that was asked for by name: everything that is made lies there."""
        self._made = "cpu"
        """Where operators without inputs put what they make: they may be a part of a larger one."""
        tensor: Any = Tensor
        self._answers: dict[Any, Callable[..., Any]] = {
            tensor.device.__get__: lambda x, *_: self._device_of(x),
            tensor.is_cuda.__get__: lambda x, *_: self.device(x) == "cuda",
            tensor.is_cpu.__get__: lambda x, *_: self.device(x) == "cpu",
            tensor.get_device: lambda x: 0 if self.device(x) == "cuda" else -1,
            tensor.grad.__set__: self._set_gradient,
            tensor.to: self._to,
            tensor.cpu: lambda x, **_: self.move(x, "cpu"),
            tensor.cuda: lambda x, *_, **__: self._to(x, CUDA),
            tensor.type_as: lambda x, other: self._to(x, other),
            tensor.numpy: lambda x, **options: self._on_host(x, "numpy").numpy(**options),
            tensor.__array__: lambda x, **dtype: self._on_host(x, "__array__").__array__(**dtype),
            tensor.pin_memory: lambda x, *_: self._on_host(x, "pin_memory"),
            tensor.is_pinned: lambda x, *_: False,
            tensor.__deepcopy__: lambda x, memo: self._storages.claim(x.__deepcopy__(memo), self.device(x)),
            tensor.__getitem__: lambda x, index: self._at(x, index, x.__getitem__),
            tensor.__setitem__: lambda x, index, value: self._at(x, index, lambda i: x.__setitem__(i, value)),
            torch.as_tensor: self._as_tensor,
            torch.asarray: self._as_tensor,
            torch.tensor: self._tensor,
            _PARSE_TO: self._parse_to,
        }

    def move(self, x: Tensor, device: str) -> Tensor:
        """``x`` itself if it is there, else a copy."""
        if self.device(x) == device or x.is_meta:
            return x
        if x.requires_grad and torch.is_grad_enabled():
            return _Move.apply(x, self, device)  # type: ignore[no-any-return]
        return self.copied(x, device)

    def copied(self, x: Tensor, device: str) -> Tensor:
        """A copy on that device, without history."""
        with torch._C.DisableTorchFunction(), self._placed(device, forced=True):
            return self._storages.claim(x.detach().clone(), device)

    def call(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Answer what Python asks."""
        if func in self._answers:
            return self._answers[func](*args, **kwargs)
        if kwargs.get("device") is not None:
            return self._made_on(func, args, kwargs)
        claimed = any(self.device(x) == "cuda" for x in tensors((args, kwargs)))
        with self._placed("cuda" if claimed else "cpu", forced=False):
            return func(*args, **kwargs)

    def run(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Run an operator, note whether a GPU would, and place what it makes."""
        inputs, arguments = tensors((args, kwargs)), [*args, *kwargs.values()]
        devices = [self.device(x) for x in inputs]
        storages = {x.untyped_storage()._cdata for x in inputs if x.layout == torch.strided}
        device = self._forced or self._made
        if self._forced is None and inputs:
            device = placed(func, inputs, devices, arguments)
            for refusal in refusals(func, inputs, devices, arguments):
                self._refuse(refusal)
        out = func(*args, **kwargs)
        for made in tensors(out):
            if made.layout == torch.strided and made.untyped_storage()._cdata not in storages:
                self._storages.claim(made, device)
        return out

    def export(self, module: torch.nn.Module, inputs: tuple[Tensor, ...], **options: Any) -> Any:
        """`torch.export.export` with neither mode, which tracers do not know: all has to be on the CPU."""
        if any(self.device(x) != "cpu" for x in (*inputs, *module.state_dict().values())):
            self._refuse("export of tensors on cuda:0")
        with _disable_current_modes(), torch._C.DisableTorchFunction():
            return _EXPORT(module, inputs, **options)

    def _made_on(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Call what takes ``device=``."""
        device = torch.device(kwargs["device"]).type
        if (kind := draws_elsewhere(kwargs.values(), device)) is not None:
            self._refuse(f"torch.{func.__name__} on {device} draws from a generator on {kind}")
        if device == "cuda":
            kwargs["device"] = "cpu"
            device = "cpu" if self._forgotten() else "cuda"
        with self._placed(device, forced=device in ("cpu", "cuda")):
            out = func(*args, **kwargs)
        return self._storages.claim(out, device) if isinstance(out, Tensor) else out

    def _tensor(self, data: Any, **kwargs: Any) -> Tensor:
        """Numbers lie on the CPU, whatever they are read from."""
        if kwargs.get("device") is None:
            kwargs["device"] = self.device(data) if isinstance(data, Tensor) else "cpu"
        return self._made_on(torch.tensor, (data,), kwargs)

    def _as_tensor(self, data: Any, **kwargs: Any) -> Tensor:
        if not isinstance(data, Tensor):
            return self._made_on(torch.as_tensor, (data,), {"device": "cpu", **kwargs})
        return self._to(data, device=kwargs.get("device"), dtype=kwargs.get("dtype"))

    def _parse_to(self, *args: Any, **kwargs: Any) -> tuple[torch.device | None, torch.dtype | None, bool, Any]:
        """What the arguments of ``to`` mean."""
        other = next((each for each in (*args, kwargs.get("other")) if isinstance(each, Tensor)), None)
        if other is not None:
            return self._device_of(other), other.dtype, False, kwargs.get("memory_format")
        return _PARSE_TO(*args, **kwargs)  # type: ignore[no-any-return]

    def _to(self, x: Tensor, *args: Any, copy: bool = False, **kwargs: Any) -> Tensor:
        device, dtype, _, memory_format = self._parse_to(*args, **kwargs)
        if device is not None and device.type not in ("cpu", "cuda"):
            return x.to(*args, copy=copy, **kwargs)
        moves = device is not None and device.type != self.device(x)
        y = self.move(x, device.type) if device is not None and moves and not self._forgotten() else x
        options = {"dtype": dtype or y.dtype, "copy": copy}
        with self._placed(self.device(y), forced=False):
            return y.to(**options, **({} if memory_format is None else {"memory_format": memory_format}))

    def _forgotten(self) -> bool:
        """Whether our code, which wants something on another device, is to be without it."""
        if self._forgetful is None and self._movers is None:
            return False
        mover = function()
        if self._movers is not None and mover is not None:
            self._movers.add(mover)
        return mover is not None and mover == self._forgetful

    def _at(self, x: Tensor, index: Any, answer: Callable[[Any], Any]) -> Any:
        """Index ``x``, where lists of numbers go to the device by themselves."""
        device = self.device(x)

        def sent(each: Any) -> Any:
            numbers = isinstance(each, list) and all(isinstance(number, int) for number in each)
            return self.copied(torch.tensor(each, dtype=torch.int64), device) if numbers else each

        with self._placed(device, forced=False):
            return answer(tuple(map(sent, index)) if isinstance(index, tuple) else sent(index))

    def _set_gradient(self, x: Tensor, gradient: Tensor | None) -> None:
        if gradient is not None and self.device(gradient) != self.device(x):
            self._refuse(f".grad = of {self.device(x)} is on {self.device(gradient)}")
        x.grad = gradient

    def _on_host(self, x: Tensor, name: str) -> Tensor:
        if self.device(x) == "cuda":
            self._refuse(f"{name}() of a tensor on cuda:0")
        return x

    def _device_of(self, x: Tensor) -> torch.device:
        return CUDA if self.device(x) == "cuda" else x.device

    @contextmanager
    def _placed(self, device: str, *, forced: bool) -> Iterator[None]:
        before = self._forced, self._made
        self._forced, self._made = device if forced else None, device
        try:
            yield
        finally:
            self._forced, self._made = before

    def _refuse(self, what: str) -> None:
        self.refused.setdefault((what.partition(" ")[0], line()), f"{what}, at {line()}")
