"""Tensors that claim to be on ``cuda:0`` and are computed on the CPU: what a GPU would refuse is seen without one.

A tensor's device is that of its storage, here as on a GPU: `claimed_cuda` keeps a list of the storages that count as
the GPU's. Python is told so by a torch function mode (``.device``, ``.to``, ``device=``); the operators that run, those
of backward passes and of foreign code included, are watched by a dispatch mode, which passes the claim on from inputs
to outputs and notes what a GPU would refuse. Values are real, so code that depends on them goes its real way.

Stricter than CUDA in one thing: an index on the CPU into a tensor on the GPU is refused too, since it waits and copies.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

import hybridprune

PACKAGE = Path(hybridprune.__file__).parent
CUDA = torch.device("cuda:0")
_EXPORT = torch.export.export
_TORCH_GENERATOR = torch.Generator
_PARSE_TO: Any = torch._C._nn._parse_to  # type: ignore[attr-defined]
COPIES = {"copy_", "_foreach_copy_", "set_"}
"""These take tensors of several devices."""
SCALARS = {"fill", "index_fill", "index_put", "lerp", "masked_fill", "where"}
"""Beside pointwise operators: these, in place or not, take a number on the CPU, as a tensor without dimensions."""
PRODUCTS = {"addmm", "addmv", "baddbmm", "bmm", "dot", "mm", "mv"}
"""On GPUs not of integers."""


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
        for place, name, value in claims.replacements():
            stack.enter_context(patch.object(place, name, value))
        stack.enter_context(_Operators(claims))
        stack.enter_context(claims.functions)
        yield CUDA
    if claims.refused:
        raise MixedDevices("\n".join(claims.refused.values()))


class _Generator(torch.Generator):
    """One that claims to be a device's and draws what the CPU's would."""

    kind: str

    def __new__(cls, device: torch.device | str = "cpu") -> _Generator:
        made = super().__new__(cls, "cpu")  # type: ignore[call-arg]
        made.kind = torch.device(device).type
        return made

    def __init__(self, device: torch.device | str = "cpu") -> None:
        """Nothing is left to do."""


def _draws_elsewhere(arguments: Iterable[Any], device: str) -> str | None:
    """The kind of device of a generator among the arguments, if it is another one."""
    for each in arguments:
        if isinstance(each, _TORCH_GENERATOR) and (kind := getattr(each, "kind", "cpu")) != device:
            return kind
    return None


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
    """Which storages are the GPU's, and what was refused."""

    def __init__(self, forgetful: str | None, movers: set[str] | None) -> None:
        self._forgetful, self._movers = forgetful, movers
        self.refused: dict[tuple[str, str], str] = {}
        """By operator and line: the first time that it was."""
        self.functions = _Functions(self)
        self._storages: dict[int, StorageWeakRef] = {}
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
            _PARSE_TO: self._parse_to,
            tensor.type_as: lambda x, other: self._to(x, other),
            tensor.numpy: lambda x, **options: self._on_host(x, "numpy").numpy(**options),
            tensor.__array__: lambda x, **dtype: self._on_host(x, "__array__").__array__(**dtype),
            tensor.pin_memory: lambda x, *_: self._on_host(x, "pin_memory"),
            tensor.is_pinned: lambda x, *_: False,
            tensor.__deepcopy__: self._deepcopy,
            tensor.__getitem__: lambda x, index: self._at(x, index, x.__getitem__),
            tensor.__setitem__: lambda x, index, value: self._at(x, index, lambda i: x.__setitem__(i, value)),
            torch.as_tensor: self._as_tensor,
            torch.asarray: self._as_tensor,
            torch.tensor: self._tensor,
        }

    def device(self, x: Tensor) -> str:
        """The kind of device that a tensor claims to be on."""
        if isinstance(x, FakeTensor) or x.layout != torch.strided or x.is_meta:
            return x.device.type
        reference = self._storages.get(x.untyped_storage()._cdata)
        return "cpu" if reference is None else "cuda"

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
            return self._claim(x.detach().clone(), device)

    def call(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Answer what Python asks."""
        if func in self._answers:
            return self._answers[func](*args, **kwargs)
        if kwargs.get("device") is not None:
            return self._made_on(func, args, kwargs)
        inputs = list(_tensors((args, kwargs)))
        with self._placed("cuda" if any(self.device(x) == "cuda" for x in inputs) else "cpu", forced=False):
            return func(*args, **kwargs)

    def run(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Run an operator, note whether a GPU would, and place what it makes."""
        inputs = list(_tensors((args, kwargs)))
        storages = {x.untyped_storage()._cdata for x in inputs if x.layout == torch.strided}
        device = self._forced or self._place(func, inputs, [*args, *kwargs.values()])
        out = func(*args, **kwargs)
        for made in _tensors(out):
            if made.layout == torch.strided and made.untyped_storage()._cdata not in storages:
                self._claim(made, device)
        return out

    def replacements(self) -> list[tuple[Any, str, Any]]:
        """What of torch has to be another while a GPU is claimed: where, name, value."""
        engine = self.functions.entered(torch.autograd.graph._engine_run_backward)
        enabled = torch.is_autocast_enabled
        on_cpu: Callable[[str], str] = lambda device: "cpu" if device == "cuda" else device  # noqa: E731

        class Autocast(torch.autocast):
            def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
                super().__init__(on_cpu(device_type), *args, **kwargs)

        return [
            (torch.autograd, "_engine_run_backward", engine),
            (torch.autograd.graph, "_engine_run_backward", engine),
            (torch, "autocast", Autocast),
            (torch, "is_autocast_enabled", lambda *device: enabled(*map(on_cpu, device))),
            (torch.export, "export", self._export),
            (torch.accelerator, "is_available", lambda: False),
            (torch, "Generator", _Generator),
            (torch.cuda, "get_device_properties", lambda *device: types.SimpleNamespace(major=0, minor=0)),
            (torch.cuda, "is_available", lambda: True),
            (torch.cuda, "init", lambda: None),
            (torch.cuda, "default_generators", (torch.default_generator,)),
            (torch.cuda, "device_count", lambda: 1),
            (torch.cuda, "current_device", lambda: 0),
            (torch.cuda, "set_device", lambda device: None),
            (torch.cuda, "get_device_name", lambda *device: "claimed"),
            (torch.cuda, "synchronize", lambda *device: None),
            (torch.cuda, "is_current_stream_capturing", lambda: False),
            (torch.cuda, "get_rng_state", lambda *device: torch.get_rng_state()),
            (torch.cuda, "set_rng_state", lambda state, *device: None),
        ]

    def _place(self, func: Any, inputs: Sequence[Tensor], arguments: Sequence[Any]) -> str:
        """Where an operator's outputs lie."""
        if not inputs:
            backward = torch._C._current_graph_task_id() != -1 and not self.functions._asked
            return "cuda" if backward and self._made == "cuda" else self._made
        name = func.overloadpacket.__name__
        devices = [self.device(x) for x in inputs]
        drawn_for = "cuda" if "cuda" in devices else "cpu"
        if (kind := _draws_elsewhere(arguments, drawn_for)) is not None:
            self._refuse(f"{func} on {drawn_for} draws from a generator on {kind}")
        numeric = inputs[0].is_floating_point() or inputs[0].is_complex()
        if "cuda" in devices and name in PRODUCTS and not numeric:
            self._refuse(f"{func} of integers is not implemented for CUDA")
        if len(set(devices)) == 1:
            return devices[0]
        if name in COPIES:
            return devices[0]
        numbers = torch.Tag.pointwise in func.tags or name.rstrip("_") in SCALARS or name.startswith("_foreach")
        rest = {
            device
            for x, device in zip(inputs, devices, strict=True)
            if not (numbers and device == "cpu" and x.ndim == 0) or _written(func, arguments, x)
        }
        if len(rest) > 1:
            shapes = ", ".join(
                f"{device} {str(x.dtype).removeprefix('torch.')}{list(x.shape)}"
                for x, device in zip(inputs, devices, strict=True)
            )
            self._refuse(f"{func} of {shapes}")
        return "cuda" if "cuda" in rest else next(iter(rest))

    def _made_on(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Call what takes ``device=``."""
        device = torch.device(kwargs["device"]).type
        if (kind := _draws_elsewhere(kwargs.values(), device)) is not None:
            self._refuse(f"torch.{func.__name__} on {device} draws from a generator on {kind}")
        if device == "cuda":
            kwargs["device"] = "cpu"
            device = "cpu" if self._forgotten() else "cuda"
        with self._placed(device, forced=device in ("cpu", "cuda")):
            out = func(*args, **kwargs)
        return self._claim(out, device) if isinstance(out, Tensor) else out

    def _tensor(self, data: Any, **kwargs: Any) -> Tensor:
        """Numbers lie on the CPU, whatever they are read from."""
        if kwargs.get("device") is None:
            kwargs["device"] = self.device(data) if isinstance(data, Tensor) else "cpu"
        return self._made_on(torch.tensor, (data,), kwargs)

    def _as_tensor(self, data: Any, **kwargs: Any) -> Tensor:
        if not isinstance(data, Tensor):
            return self._made_on(torch.as_tensor, (data,), {"device": "cpu", **kwargs})
        return self._to(data, device=kwargs.get("device"), dtype=kwargs.get("dtype"))

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
        """Whether our code, which wants something on the device, is to be without it."""
        if self._forgetful is None and self._movers is None:
            return False
        file, _, function = _line().partition(" ")
        mover = f"{file.partition(':')[0]} {function}"
        if self._movers is not None and file.startswith(PACKAGE.name):
            self._movers.add(mover)
        return mover == self._forgetful

    def _at(self, x: Tensor, index: Any, answer: Callable[[Any], Any]) -> Any:
        """Index ``x``, where lists of numbers go to the device by themselves."""
        device = self.device(x)

        def sent(each: Any) -> Any:
            numbers = isinstance(each, list) and all(isinstance(number, int) for number in each)
            return self.copied(torch.tensor(each, dtype=torch.int64), device) if numbers else each

        with self._placed(device, forced=False):
            return answer(tuple(map(sent, index)) if isinstance(index, tuple) else sent(index))

    def _parse_to(self, *args: Any, **kwargs: Any) -> tuple[torch.device | None, torch.dtype | None, bool, Any]:
        """What the arguments of ``to`` mean."""
        other = next((each for each in (*args, kwargs.get("other")) if isinstance(each, Tensor)), None)
        if other is not None:
            return self._device_of(other), other.dtype, False, kwargs.get("memory_format")
        return _PARSE_TO(*args, **kwargs)  # type: ignore[no-any-return]

    def _export(self, module: torch.nn.Module, inputs: tuple[Tensor, ...], **options: Any) -> Any:
        """Trace with neither mode, which tracers do not know: all has to be on the CPU."""
        if any(self.device(x) != "cpu" for x in (*inputs, *module.state_dict().values())):
            self._refuse("export of tensors on cuda:0")
        with _disable_current_modes(), torch._C.DisableTorchFunction():
            return _EXPORT(module, inputs, **options)

    def _deepcopy(self, x: Tensor, memo: dict[int, Any]) -> Tensor:
        return self._claim(x.__deepcopy__(memo), self.device(x))

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

    def _claim(self, x: Tensor, device: str) -> Tensor:
        """Note where the storage of ``x``, a new one, lies."""
        if device != "cuda" or isinstance(x, FakeTensor) or x.is_meta:
            return x
        storage = x.untyped_storage()
        if len(self._storages) % 4096 == 4095:
            self._storages = {key: each for key, each in self._storages.items() if not each.expired()}
        # A reference, however weak, keeps the number from being given to another storage.
        self._storages[storage._cdata] = StorageWeakRef(storage)
        return x

    @contextmanager
    def _placed(self, device: str, *, forced: bool) -> Iterator[None]:
        before = self._forced, self._made
        self._forced, self._made = device if forced else None, device
        try:
            yield
        finally:
            self._forced, self._made = before

    def _refuse(self, what: str) -> None:
        line = _line()
        self.refused.setdefault((what.partition(" ")[0], line), f"{what}, at {line}")


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict):
        for each in tree.values():
            yield from _tensors(each)
    elif isinstance(tree, list | tuple):
        for each in tree:
            yield from _tensors(each)


def _written(func: Any, arguments: Sequence[Any], x: Tensor) -> bool:
    """Whether the operator changes ``x`` in place."""
    return any(
        given is x and (info := declared.alias_info) is not None and info.is_write
        for declared, given in zip(func._schema.arguments, arguments, strict=False)
    )


def _line() -> str:
    """The innermost line of our package that is being run; without one, the innermost that is not torch's."""
    frame: types.FrameType | None = sys._getframe(1)
    found = "?"
    while frame is not None:
        code = frame.f_code
        path = Path(code.co_filename)
        if PACKAGE in path.parents:
            return f"{path.relative_to(PACKAGE.parent)}:{frame.f_lineno} ({code.co_qualname})"
        if found == "?" and "torch" not in path.parts and path != Path(__file__) and "contextlib" not in path.name:
            found = f"{path.name}:{frame.f_lineno} ({code.co_qualname})"
        frame = frame.f_back
    return found
