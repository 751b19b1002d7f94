"""Autocast around passes alone, and fp32 that is fp32 whatever a caller has set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from hybridprune.curvature import collect_factors, collect_second_moments
from hybridprune.data import Batch
from hybridprune.engine.batchnorm import recalibrate_by
from hybridprune.engine.evaluate import evaluate_routes
from hybridprune.models.routed import Routed
from hybridprune.precision import FP32, Precision, fp32_precisions, full_precision, is_emulated, tf32

BF16 = Precision("cpu", torch.bfloat16)


class Two(NamedTuple):
    logits: Tensor
    more: dict[str, tuple[Tensor, int]]


def test_a_pass_is_in_its_precision_and_what_it_returns_is_not() -> None:
    layer, x = nn.Linear(4, 4), torch.randn(3, 4)
    seen: list[torch.dtype] = []

    def run(x: Tensor) -> Two:
        y = layer(x)
        seen.append(y.dtype)
        return Two(y, {"y": (y.double(), 1)})

    found = BF16(run)(x)
    assert seen == [torch.bfloat16] and not torch.is_autocast_enabled("cpu")
    assert isinstance(found, Two) and found.logits.dtype == torch.float32 and found.more["y"][1] == 1
    assert found.more["y"][0].dtype == torch.float64
    assert not torch.equal(found.logits, layer(x))
    found.logits.sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.dtype == torch.float32


def test_fp32_is_the_pass_itself() -> None:
    layer = nn.Linear(4, 4)
    assert FP32(layer) is layer and Precision.of("fp32", torch.device("cpu"))(layer) is layer
    assert Precision.of("bf16", torch.device("cpu")) == BF16
    assert Precision.of("fp16", torch.device("cuda:1")) == Precision("cuda", torch.float16)


def test_weights_are_cast_again_when_they_have_changed() -> None:
    layer, x = nn.Linear(1, 1, bias=False), torch.ones(1, 1)
    run = BF16(layer)
    for weight in (0.5, 1.5):  # both are numbers of bf16
        with torch.no_grad():
            layer.weight.fill_(weight)
        assert run(x).item() == weight


def flags() -> dict[str, object]:
    """All of torch's flags for products of fp32 numbers, by both of their names."""
    found: dict[str, object] = {f"cuda.{name}": value for name, value in fp32_precisions().items()}
    mkldnn = torch.backends.mkldnn
    for name in ("matmul", "conv", "rnn"):
        found[f"cpu.{name}"] = getattr(mkldnn, name).fp32_precision
    found["cudnn"], found["matmul"] = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    found["global"] = torch.get_float32_matmul_precision()
    return found


@pytest.fixture(autouse=True)
def defaults() -> Iterator[None]:
    before = flags()
    with tf32(False):  # puts all of them back
        torch.backends.cudnn.allow_tf32 = True
        torch.set_float32_matmul_precision("highest")
        yield
    assert flags() == before


SETTINGS: dict[str, Callable[[], object]] = {
    "torch's defaults": lambda: None,
    "highest": lambda: torch.set_float32_matmul_precision("highest"),
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "no TF32": lambda: setattr(torch.backends.cudnn, "allow_tf32", False),
    "TF32": lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("allowed", [False, True])
def test_tf32_is_as_asked_inside_and_as_it_was_outside(name: str, allowed: bool) -> None:
    SETTINGS[name]()
    before = flags()
    with tf32(allowed):
        inside = flags()
        with tf32(not allowed):
            assert flags() != inside
        assert flags() == inside
    assert flags() == before
    wanted = "tf32" if allowed else "ieee"
    assert {inside[f"cuda.{name}"] for name in ("matmul", "conv", "rnn")} == {wanted}
    assert {inside[f"cpu.{name}"] for name in ("matmul", "conv", "rnn")} == {"ieee"}
    assert inside["cudnn"] is inside["matmul"] is allowed  # what compilers read
    assert inside["global"] == ("high" if allowed else "highest")


def test_flags_are_put_back_when_something_fails() -> None:
    before = flags()
    with pytest.raises(KeyError), full_precision():
        raise KeyError
    assert flags() == before


def test_a_caller_that_uses_the_other_names_is_no_error() -> None:
    """Where the two names of a flag contradict each other, torch raises when the older one is read."""
    cudnn: Any = torch.backends.cudnn
    rnn = cudnn.rnn
    before = rnn.fp32_precision
    rnn.fp32_precision = "ieee"
    try:
        with pytest.raises(RuntimeError):
            _ = cudnn.allow_tf32
        with full_precision():
            assert set(fp32_precisions().values()) == {"ieee"}
        assert rnn.fp32_precision == "ieee" and cudnn.conv.fp32_precision == "tf32"
    finally:
        rnn.fp32_precision = before


def test_full_precision_ends_autocast() -> None:
    a, b = torch.randn(8, 8), torch.randn(8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert (a @ b).dtype == torch.bfloat16
        with full_precision():
            assert (a @ b).dtype == torch.float32
        assert torch.is_autocast_enabled("cpu")


MEASURED: dict[str, Callable[[Callable[[Tensor], Tensor], nn.Module], object]] = {
    "factors": lambda forward, net: collect_factors(
        forward, dict(net.named_children()), BATCHES, fisher_type="true", moving_average=0.0, seed=0
    ),
    "moments": lambda forward, net: collect_second_moments(
        forward,
        dict(net.named_children()),
        BATCHES,
        bases={"0": (torch.eye(2), torch.eye(3), None)},
        fisher_type="true",
        seed=0,
    ),
    "evaluation": lambda forward, net: evaluate_routes(lambda batch, _: _routed(forward(batch.images)), BATCHES),
    "recalibration": lambda forward, net: recalibrate_by(net, BATCHES, lambda batch: forward(batch.images)),
}
DATA = [(torch.randn(4, 3), torch.arange(4) % 2)]
BATCHES = [Batch(*DATA[0], torch.arange(4))]


def _routed(logits: Tensor) -> Routed:
    return Routed(logits, logits[:, :0], logits[:, :0])


@pytest.mark.parametrize("name", MEASURED)
def test_what_measures_is_in_full_precision(name: str) -> None:
    net, seen = nn.Sequential(nn.Linear(3, 2)), []

    def forward(x: Tensor) -> Tensor:
        y = net(x)
        seen.append((y.dtype, set(fp32_precisions().values())))
        return y

    with tf32(True), torch.autocast("cpu", torch.bfloat16):
        MEASURED[name](forward, net)
    assert seen and all(each == (torch.float32, {"ieee"}) for each in seen)


@pytest.mark.parametrize(
    ("name", "device", "known", "expected"),
    [
        ("bf16", "cpu", {"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": False}, True),
        ("bf16", "cpu", {"architecture": "x86_64", "avx512_bf16": True, "amx_bf16": False}, False),
        ("bf16", "cpu", {"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": True}, False),
        ("fp16", "cpu", {"architecture": "x86_64", "avx512_bf16": True, "amx_bf16": True}, True),
        ("fp32", "cpu", {"architecture": "x86_64"}, False),
        ("bf16", "cpu", {"architecture": "aarch64"}, False),
        ("bf16", "cuda", {"architecture": "x86_64"}, False),
    ],
)
def test_formats_without_instructions_are_known(
    name: str, device: str, known: dict[str, Any], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known)
    assert is_emulated(name, torch.device(device)) is expected
