"""The harness itself: it knows what a GPU refuses, and its numbers are those of the CPU."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridprune.routing.policy_gradient import policy_loss
from tests.devices.claimed import MixedDevices, claimed_cuda


class _Doubled(torch.autograd.Function):
    """Twice, whose gradient forgets the device."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * torch.full((3,), 2.0)


def _written(x: Tensor, index: Any, value: Any) -> None:
    x[index] = value


def _set_gradient(x: Tensor) -> None:
    x.requires_grad_().grad = torch.ones(3)


REFUSED: dict[str, tuple[str, Callable[[torch.device], object]]] = {
    "concatenation": ("aten.cat", lambda d: torch.cat([torch.ones(3, device=d), torch.ones(3)])),
    "stack": ("aten.stack", lambda d: torch.stack([torch.ones(3, device=d), torch.ones(3)])),
    "sum": ("aten.add", lambda d: torch.ones(3, device=d) + torch.ones(3)),
    "product": ("aten.mm", lambda d: torch.eye(2, device=d) @ torch.eye(2)),
    "integer product": ("integers", lambda d: torch.eye(2, device=d).long() @ torch.eye(2, device=d).long()),
    "index": ("aten.index", lambda d: torch.ones(3, device=d)[torch.arange(2)]),
    "mask": ("aten.index", lambda d: torch.ones(3, device=d)[torch.ones(3) > 0]),
    "index of the CPU": ("aten.index", lambda d: torch.ones(3)[torch.arange(2, device=d)]),
    "index_select": ("aten.index_select", lambda d: torch.ones(3, device=d).index_select(0, torch.arange(2))),
    "gather": ("aten.gather", lambda d: torch.ones(3, device=d).gather(0, torch.arange(2))),
    "written": ("aten.index_put_", lambda d: _written(torch.ones(3, device=d), torch.arange(2), 0.0)),
    "in": ("aten.isin", lambda d: torch.isin(torch.arange(3, device=d), torch.arange(2))),
    "labels": ("aten.nll_loss", lambda d: F.cross_entropy(torch.ones(2, 3, device=d), torch.arange(2))),
    "number changed by the device": ("aten.mul_", lambda d: torch.tensor(2.0).mul_(torch.ones((), device=d))),
    "layer": ("aten.addmm", lambda d: nn.Linear(3, 2)(torch.ones(1, 3, device=d))),
    "backward pass": ("aten.mul", lambda d: _Doubled.apply(torch.ones(3, device=d).requires_grad_()).sum().backward()),
    "gradient": (".grad", lambda d: _set_gradient(torch.ones(3, device=d))),
    "numpy": ("numpy()", lambda d: torch.ones(3, device=d).numpy()),
    "array": ("__array__()", lambda d: np.asarray(torch.ones(3, device=d))),
    "generator": ("torch.rand", lambda d: torch.rand(3, generator=torch.Generator(), device=d)),
    "multinomial": (
        "aten.multinomial",
        lambda d: torch.multinomial(torch.ones(3, device=d), 1, generator=torch.Generator()),
    ),
    "export": ("export", lambda d: torch.export.export(nn.Linear(3, 2).to(d), (torch.ones(1, 3),))),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_gpu_refuses_is_named_with_its_line(name: str) -> None:
    operator, run = REFUSED[name]
    with pytest.raises(MixedDevices) as refused, claimed_cuda() as device:
        run(device)
    (line,) = str(refused.value).splitlines()
    assert operator in line and "test_claimed.py" in line


def test_a_line_of_the_package_is_named() -> None:
    with (
        pytest.raises(MixedDevices, match=r"at hybridprune/routing/policy_gradient\.py:\d+ \(policy_loss\)$"),
        claimed_cuda() as device,
    ):
        policy_loss(torch.zeros(3, 2, device=device), torch.ones(3, 2))


MADE: dict[str, Callable[[torch.device], Tensor]] = {
    "zeros": lambda d: torch.zeros(2, device="cuda"),
    "arange": lambda d: torch.arange(2, device=d),
    "randperm": lambda d: torch.randperm(2, device=d),
    "tensor": lambda d: torch.tensor([1], device=d),
    "as_tensor": lambda d: torch.as_tensor([1], device=d),
    "to": lambda d: torch.zeros(2).to(d),
    "to another": lambda d: torch.zeros(2).to(torch.zeros(2, device=d)),
    "to another type": lambda d: torch.zeros(2, device=d).to(torch.float64),
    "cuda": lambda d: torch.zeros(2).cuda(),
    "new_zeros": lambda d: torch.zeros(2, device=d).new_zeros(2),
    "empty_like": lambda d: torch.empty_like(torch.zeros(2, device=d)),
    "view": lambda d: torch.zeros(2, 2, device=d)[0],
    "a list's": lambda d: torch.zeros(2, device=d)[[0, 1]],
    "number of the CPU": lambda d: torch.zeros(2, device=d) * torch.tensor(2.0),
    "chosen number of the CPU": lambda d: torch.where(torch.zeros(2, device=d) > 0, torch.tensor(1.0), 0.0),
    "one_hot": lambda d: F.one_hot(torch.arange(2, device=d)),
    "unique": lambda d: torch.unique(torch.arange(2, device=d)),
    "pinned": lambda d: torch.zeros(2).pin_memory().to(d, non_blocking=True),
    "parameter": lambda d: nn.Linear(2, 2).to(d).weight,
    "parameter in another format": lambda d: nn.Conv2d(1, 1, 1).to(device=d, memory_format=torch.channels_last).weight,  # type: ignore[call-overload]
    "copied buffer": lambda d: copy.deepcopy(nn.BatchNorm1d(2).to(d)).get_buffer("running_mean"),
    "loaded": lambda d: _loaded(nn.Linear(2, 2).to(d)),
    "like a tensor": lambda d: nn.Linear(2, 2).to(torch.zeros(2, device=d)).weight,
}


def _loaded(layer: nn.Linear) -> Tensor:
    layer.load_state_dict(nn.Linear(2, 2).state_dict())
    return layer.weight


@pytest.mark.parametrize("name", MADE)
def test_what_is_made_on_the_device_is_there(name: str) -> None:
    with claimed_cuda() as device:
        made = MADE[name](device)
        assert made.device == device and made.is_cuda and made.get_device() == 0
        assert made.cpu().device == torch.device("cpu") and made.device == device


def test_what_is_made_elsewhere_is_not() -> None:
    with claimed_cuda() as device:
        there = torch.ones(2, device=device)
        for made in (there.cpu(), torch.zeros_like(there, device="cpu"), torch.tensor([there[0]]), torch.ones(2)):
            assert made.device == torch.device("cpu")
        assert nn.Linear(2, 2).to(device).to("meta").weight.device == torch.device("meta")


def test_a_gradient_goes_back_to_where_its_tensor_is() -> None:
    with claimed_cuda() as device:
        x = torch.ones(3, requires_grad=True)
        x.to(device).square().sum().backward()
        assert x.grad is not None and x.grad.device == torch.device("cpu")
        assert torch.equal(x.grad, 2 * torch.ones(3))


def _trained(device: torch.device | str, precision: torch.dtype) -> list[Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).to(device)
    images, labels = torch.randn(6, 3, 8, 8).to(device), torch.arange(6).remainder(5).to(device)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    scaler = torch.amp.GradScaler(str(device).partition(":")[0], enabled=precision == torch.float16)
    for _ in range(3):
        with torch.autocast(str(device).partition(":")[0], precision, enabled=precision != torch.float32):
            logits = net(images)
        assert logits.dtype == precision
        optimiser.zero_grad()
        scaler.scale(F.cross_entropy(logits.float(), labels)).backward()
        scaler.step(optimiser)
        scaler.update()
    return [value.cpu() for value in net.state_dict().values()]


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16])
def test_training_there_is_training_on_the_cpu(precision: torch.dtype) -> None:
    with claimed_cuda() as device:
        there = _trained(device, precision)
    assert all(torch.equal(*pair) for pair in zip(there, _trained("cpu", precision), strict=True))


def test_nothing_of_torch_is_changed_afterwards() -> None:
    def replaced() -> list[Any]:
        return [torch.cuda.is_available, torch.autocast, torch.export.export, torch.autograd.graph._engine_run_backward]

    before = replaced()
    with claimed_cuda():
        assert torch.cuda.is_available() and all(
            one is not other for one, other in zip(replaced(), before, strict=True)
        )
    assert replaced() == before and torch.ones(2).device == torch.device("cpu")
