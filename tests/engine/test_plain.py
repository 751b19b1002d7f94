"""Networks in wrappers, in half precision, with checkpointing and with computed weights."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import hybridprune
from hybridprune.config import CurvatureOptions, CutOptions
from hybridprune.engine.plain import checkpointing, plain_copy, take_types, unwrapped
from hybridprune.errors import UserError
from hybridprune.measure.cost import count_module
from tests.process_groups import together

QUICK: dict[str, Any] = {
    "target_flops": 0.6,
    "curvature": CurvatureOptions(curvature_images=16, moment_images=16),
    "cut": CutOptions(refit_images=16),
}


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(32, 4)
    ).eval()


def batches() -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    return [(torch.randn(n, 3, 6, 6, generator=draw), torch.arange(n) % 4) for n in (9, 7)]


WRAPPED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compiled": lambda model: torch.compile(model, backend="eager"),  # type: ignore[dict-item]
    "DataParallel": nn.DataParallel,
    "both": lambda model: torch.compile(nn.DataParallel(model), backend="eager"),  # type: ignore[dict-item]
}


@pytest.mark.parametrize("name", WRAPPED)
def test_a_wrapped_network_is_the_network(name: str, tmp_path: Path) -> None:
    plain = hybridprune.prune(net(), batches(), **QUICK)
    model = WRAPPED[name](net())
    assert type(unwrapped(model)) is nn.Sequential
    found = hybridprune.prune(model, batches(), **QUICK)
    assert type(found.module) is nn.Sequential and found.spec == plain.spec
    torch.testing.assert_close(found.module.state_dict(), plain.module.state_dict(), rtol=0, atol=0)
    hybridprune.save(found, tmp_path)
    fresh = hybridprune.restore(tmp_path, into=WRAPPED[name](net()))
    torch.testing.assert_close(fresh.state_dict(), plain.module.state_dict(), rtol=0, atol=0)


def test_a_distributed_network_is_the_network(tmp_path: Path) -> None:
    def work() -> list[str]:
        model = nn.parallel.DistributedDataParallel(net())
        pruned = hybridprune.prune(model, batches(), **QUICK)
        assert dist.is_initialized()
        return [type(pruned.module).__name__, *(edit.layer for edit in pruned.spec.edits)]

    for code, found, _, err in together(tmp_path, work):
        assert code == 0, err
        assert found[0] == "Sequential" and found[1:]


def test_a_module_compiled_in_place_is_measured() -> None:
    plain, model = hybridprune.prune(net(), batches(), **QUICK), net()
    model.compile(backend="eager")
    found = hybridprune.prune(model, batches(), **QUICK)
    torch.testing.assert_close(found.module.state_dict(), plain.module.state_dict(), rtol=0, atol=0)


def test_a_wrapper_inside_is_refused_in_one_line() -> None:
    model = nn.Sequential(WRAPPED["compiled"](net()[:4]), *net()[4:])
    with pytest.raises(UserError, match="0: a OptimizedModule inside of the network") as refused:
        hybridprune.prune(model, batches(), **QUICK)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("images", [torch.float32, None], ids=["float32", "half"])
@pytest.mark.parametrize("fine_tune", [0.0, 1.0])
def test_half_precision_is_measured_in_single_and_comes_back_as_it_was(
    dtype: torch.dtype, images: torch.dtype | None, fine_tune: float, tmp_path: Path
) -> None:
    model = net().to(dtype)
    before = copy.deepcopy(model.state_dict())
    rounded = [(x.to(dtype), y) for x, y in batches()]
    loader = [(x.to(images or dtype), y) for x, y in rounded]
    options = {**QUICK, "fine_tune": fine_tune, "lr": 1e-3, "kd_weight": 0.5 if fine_tune else 0.0}
    expected = hybridprune.prune(model.float(), [(x.float(), y) for x, y in rounded], **options)
    found = hybridprune.prune(model.to(dtype), loader, **options)
    assert found.spec == expected.spec
    for name, value in found.module.state_dict().items():
        assert value.dtype == (dtype if value.is_floating_point() else torch.int64), name
        torch.testing.assert_close(value, expected.module.state_dict()[name].to(value.dtype), rtol=0, atol=0)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    hybridprune.save(found, tmp_path)
    fresh = hybridprune.restore(tmp_path, into=net().to(dtype))
    torch.testing.assert_close(fresh.state_dict(), found.module.state_dict(), rtol=0, atol=0)


def test_ones_own_training_gets_ones_own_precision() -> None:
    seen: list[torch.dtype] = []
    hybridprune.prune(
        net().bfloat16(), batches(), fine_tune=lambda m: seen.extend({p.dtype for p in m.parameters()}), **QUICK
    )
    assert seen == [torch.bfloat16]


def test_every_layer_has_its_own_precision() -> None:
    model = net().bfloat16()
    model[1].float()
    pruned = hybridprune.prune(model, batches(), forward=lambda m, batch: m(batch[0]), **QUICK)
    types = {name: value.dtype for name, value in pruned.module.named_parameters()}
    assert {types[name] for name in types if name.startswith("1.")} == {torch.float32}
    assert {types[name] for name in types if not name.startswith("1.")} == {torch.bfloat16}


class Autocast(nn.Module):
    """Computes in half precision by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.net(x)


def test_a_network_that_computes_in_half_precision_is_cut_to_the_budget() -> None:
    pruned = hybridprune.prune(Autocast(), batches(), **QUICK)
    assert count_module(pruned.module, batches()[0][0][:1])[0] <= 0.6 * pruned.spec.dense_macs
    assert {value.dtype for value in pruned.module.parameters()} == {torch.float32}


class Checkpointed(nn.Module):
    """Computes its inner layers again in the backward pass."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.net, self.reentrant = net(), reentrant

    def forward(self, x: Tensor) -> Tensor:
        x = checkpoint(self.net[1:4], self.net[0](x), use_reentrant=self.reentrant)
        return self.net[4:](x)


@pytest.mark.parametrize("method", ["fisher-tucker", "kron-obd", "taylor"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_nothing(reentrant: bool, method: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = hybridprune.prune(net(), batches(), method=method, **QUICK)
        found = hybridprune.prune(Checkpointed(reentrant).eval(), batches(), method=method, **QUICK)
    state = {name.removeprefix("net."): value for name, value in found.module.state_dict().items()}
    torch.testing.assert_close(state, plain.module.state_dict(), rtol=1e-5, atol=1e-6)
    assert found.spec.macs == plain.spec.macs


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_is_back_afterwards(reentrant: bool) -> None:
    runs: list[int] = []

    def work(x: Tensor) -> Tensor:
        runs.append(1)
        return x.exp()

    def passes() -> int:
        runs.clear()
        x = torch.ones(2, requires_grad=True)
        checkpoint(work, x, use_reentrant=reentrant).sum().backward()
        return len(runs)

    with checkpointing(False):
        assert passes() == 1
        with checkpointing(True):
            assert passes() == 2
        assert passes() == 1
    assert passes() == 2


class Remembering(nn.Module):
    """Keeps its features, and has an old-style weight norm: tensors that hang on a graph."""

    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.stem = nn.utils.weight_norm(nn.Conv2d(3, 8, 3))
        self.conv, self.head = nn.Conv2d(8, 8, 3), nn.Linear(32, 4)
        self.features: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.features = self.conv(self.stem(x).relu()).flatten(1)
        return self.head(self.features)


def test_what_modules_remember_is_no_obstacle(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Remembering().eval()
    model(batches()[0][0])
    assert model.features is not None and not model.features.is_leaf
    pruned = hybridprune.prune(model, batches(), **{**QUICK, "target_flops": 0.8})
    assert pruned.left_alone == {"stem": "its weight is shared or computed"}
    assert count_module(pruned.module, batches()[0][0][:1])[0] <= 0.8 * pruned.spec.dense_macs
    hybridprune.save(pruned, tmp_path)
    fresh = hybridprune.restore(tmp_path, into=Remembering()).eval()
    with torch.no_grad():
        torch.testing.assert_close(fresh(batches()[0][0]), pruned.module(batches()[0][0]))
    assert not model.features.is_leaf and model.features.grad_fn is not None


def test_types_are_those_of_the_layer() -> None:
    model = net().half()
    single = plain_copy(model)
    assert {p.dtype for p in single.parameters()} == {torch.float32} and {p.dtype for p in model.parameters()} == {
        torch.float16
    }
    assert {p.dtype for p in take_types(single, model).parameters()} == {torch.float16}
    buffers = dict(single.named_buffers())
    assert buffers["1.running_mean"].dtype == torch.float16 and buffers["1.num_batches_tracked"].dtype == torch.int64
