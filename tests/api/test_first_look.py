"""What does not fit is told in one line before any work; what fits is used as it is."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import hybridprune
from hybridprune.config import CurvatureOptions, CutOptions
from hybridprune.errors import RunFailed, UserError

QUICK = CurvatureOptions(curvature_images=8, moment_images=8)
COUNTS = (5, 4)


def net(outputs: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(24, outputs)
    )


def images(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


def batches(targets: Callable[[int], Any] = lambda n: torch.arange(n) % 3) -> list[Any]:
    return [(images(n, n), targets(n)) for n in COUNTS]


def pruned(model: nn.Module, loader: Any, **options: Any) -> hybridprune.Pruned:
    common: dict[str, Any] = {"target_flops": 0.6, "curvature": QUICK, "cut": CutOptions(refit_images=0)}
    return hybridprune.prune(model, loader, **{**common, **options})


class Wrapped(nn.Module):
    """The plain network with something else around its output."""

    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.net, self.wrap = net(), wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.net(x))


class Dense(nn.Module):
    """A class for every position ``[B, 3, 6, 6]``."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.relu(self.first(x)))


class InPlace(nn.Module):
    """Can be used, but not trained: what a layer has read is changed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).sigmoid()
        z = self.second(y)
        y.mul_(0.5)
        return self.head(z.mean((2, 3)))


def dictionaries() -> list[Any]:
    return [{"image": x, "label": y} for x, y in batches()]


def nan_at(batch: int) -> list[Any]:
    found = batches()
    found[batch][0][1, 0, 2, 2] = float("nan")
    return found


def once() -> Iterator[Any]:
    yield from batches()


class Exhausted:
    """Says that it can be gone through again, and gives nothing the second time."""

    def __init__(self) -> None:
        self.left = batches()

    def __iter__(self) -> Iterator[Any]:
        left, self.left = self.left, []
        return iter(left)


def broken_weights() -> nn.Module:
    model = net()
    nn.init.constant_(model[0].get_parameter("weight"), float("nan"))
    return model


class Endless:
    """Does not know its length."""

    def __iter__(self) -> Iterator[Any]:
        return iter(batches())


LAST = [*batches()[:1], (images(4), torch.tensor([0, 1, 2, 3]))]
REFUSED: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any], dict[str, Any], str]] = {
    "dictionaries": (net, dictionaries, {}, r"a dict of 'image', 'label', not a pair.*forward="),
    "dictionaries, named loss": (net, dictionaries, {"forward": lambda m, b: m(b["image"])}, "loss=, a function"),
    "three items": (net, lambda: [(*b, 1) for b in batches()], {}, r"a tuple of 3 \(Tensor, Tensor, int\).*forward="),
    "numpy": (net, lambda: [(x.numpy(), y.numpy()) for x, y in batches()], {}, "ndarray, ndarray.*torch.from_numpy"),
    "two inputs": (net, lambda: [((x, x), y) for x, y in batches()], {}, "forward="),
    "images alone": (net, lambda: [x for x, _ in batches()], {}, "a batch is a Tensor"),
    "a data set": (net, lambda: TensorDataset(images(4), torch.arange(4) % 3), {}, "is a data set"),
    "no loader": (net, lambda: None, {}, "the loader is a NoneType; give a DataLoader"),
    "a generator": (net, once, {}, "generator, which can be gone through once"),
    "empty": (net, list, {}, "gives no batches"),
    "exhausted": (net, Exhausted, {}, "gives no batches"),
    "no parameters": (nn.Flatten, batches, {}, "Flatten: has no parameters"),
    "lazy": (lambda: nn.Sequential(nn.LazyConv2d(4, 3)), batches, {}, "lazy"),
    "sizes": (net, lambda: [(images(4)[:, :2], torch.zeros(4).long())], {}, r"fails on the first batch \(RuntimeError"),
    "bytes": (net, lambda: [(images(4).byte(), torch.zeros(4).long())], {}, r"fails on the first batch \(RuntimeError"),
    "tuple out": (lambda: Wrapped(lambda y: (y, y)), batches, {}, "output is no tensor.*forward="),
    "dict out": (lambda: Wrapped(lambda y: {"out": y}), batches, {}, "output is no tensor.*forward="),
    "one logit": (lambda: net(1), lambda: batches(lambda n: torch.arange(n) % 2), {}, "loss='bce'"),
    "multi-hot": (net, lambda: batches(lambda n: torch.ones(n, 3)), {}, "loss='bce'"),
    "floats": (net, lambda: batches(lambda n: torch.zeros(n)), {}, r"targets\.long\(\)"),
    "list of ids": (net, lambda: batches(lambda n: [0] * n), {}, "the targets are a list"),
    "ids out of range": (net, lambda: batches(lambda n: torch.arange(n)), {}, "class id 3 with 3 outputs"),
    "ids out of range later": (net, lambda: LAST, {}, "batch 2: .*class id 3 with 3 outputs"),
    "fewer targets": (net, lambda: batches(lambda n: torch.zeros(n - 1).long()), {}, r"need class ids \[5\]"),
    "masks of another size": (Dense, lambda: batches(lambda n: torch.zeros(n, 3, 3).long()), {}, r"\[5, 6, 6\]"),
    "NaN": (net, lambda: nan_at(0), {}, "the first batch: its inputs are not finite"),
    "NaN weights": (broken_weights, batches, {}, "output for the first batch is not finite"),
    "loss of no name": (net, batches, {"loss": "hinge"}, "loss 'hinge': give one of"),
    "loss of many numbers": (net, batches, {"loss": lambda y, b: F.cross_entropy(y, b[1], reduction="none")}, "mean"),
    "loss of no number": (net, batches, {"loss": lambda y, b: y.mean() * float("nan")}, "first batch is nan"),
    "loss that fails": (net, batches, {"loss": lambda y, b: y["out"]}, r"the loss of the first batch fails \(\w+Error"),
    "forward that fails": (net, batches, {"forward": lambda m, b: m(b["image"])}, "mend forward="),
    "distilled": (net, batches, {"loss": lambda y, b: y.mean(), "kd_weight": 0.5, "fine_tune": 1.0}, "kd_weight"),
    "endless": (net, Endless, {"fine_tune": 0.5}, "the loader has no length"),
    "endless, sparse": (net, Endless, {"method": "slimming"}, "the loader has no length"),
    "frozen": (lambda: net().requires_grad_(False), batches, {"fine_tune": 1.0}, "no parameter .* requires a gradient"),
    "no gradient": (InPlace, batches, {}, r"gradient cannot be computed \(RuntimeError: .* modified by an inplace"),
    "no gradient, taylor": (InPlace, batches, {"method": "taylor"}, "gradient cannot be computed"),
    "mode": (net, batches, {"forward": lambda m, b: m.train()(b[0])}, "leaves the network in training mode"),
    "images second": (
        lambda: Wrapped(lambda y: y.T), batches, {"loss": "mse"}, r"outputs \[3, 5\] need a target each"
    ),
    "sequence first": (
        lambda: nn.Sequential(nn.Linear(4, 3)), lambda: [(torch.randn(7, 5, 4), torch.arange(5) % 3)],
        {"forward": lambda m, b: m(b[0]).mean(0)}, r"the output for 7 images is \[5, 3\]; images come first",
    ),
    "epochs": (net, batches, {"fine_tune": -1.0}, "fine_tune -1"),
    "rate": (net, batches, {"lr": float("nan")}, "lr [nN]a[nN]"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_in_one_line(name: str) -> None:
    make, loader, options, message = REFUSED[name]
    model = make()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UserError, match=message) as refused:
        pruned(model, loader(), **options)
    assert "\n" not in str(refused.value)
    if name not in ("lazy", "NaN weights"):
        torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("method", ["fisher-tucker", "l1", "taylor"])
@pytest.mark.parametrize("fine_tune", [0.0, 1.0])
def test_an_image_that_is_no_number_never_ends_in_a_network(method: str, fine_tune: float) -> None:
    """In whichever batch, and whoever sees it first."""
    with pytest.raises(UserError, match=r"batch \d: its inputs are not finite"):
        pruned(net(), nan_at(1), method=method, fine_tune=fine_tune)


ODD: dict[str, tuple[Any, str]] = {
    "nothing": (None, "batch 2: a batch is a NoneType"),
    "a dictionary": ({"a": 1}, "batch 2: a batch is a dict of 'a'"),
    "no targets": ((images(4), None), "batch 2: its targets are a NoneType"),
    "words": (("a", "b"), r"batch 2: a batch is a tuple of 2 \(str, str\)"),
    "fewer targets": ((images(4), torch.zeros(3).long()), "batch 2: it has 4 inputs and 3 targets"),
    "numbers": ((images(4), torch.zeros(4)), "batch 2: loss 'cross_entropy': takes class ids"),
    "other channels": ((images(4)[:, :2], torch.zeros(4).long()), r"the network fails on a batch \(RuntimeError"),
    "other size": ((images(4)[:, :, :5], torch.zeros(4).long()), r"the network fails on a batch \(RuntimeError"),
}


@pytest.mark.parametrize("method", ["fisher-tucker", "l1"])
@pytest.mark.parametrize("name", ODD)
def test_a_later_batch_that_is_odd_is_refused_in_one_line(name: str, method: str) -> None:
    batch, message = ODD[name]
    curvature = CurvatureOptions(curvature_images=20, moment_images=20)
    with pytest.raises(UserError, match=message) as refused:
        pruned(net(), [batches()[0], batch], method=method, curvature=curvature, fine_tune=1.0)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("method", ["fisher-tucker", "l1"])
def test_nor_does_one_that_nobody_looks_at(method: str) -> None:
    """What ``forward`` reads of a batch is its own affair."""
    with pytest.raises((UserError, RunFailed), match="not finite") as refused:
        pruned(net(), nan_at(1), method=method, forward=lambda model, batch: model(batch[0]))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("method", ["fisher-tucker", "taylor"])
def test_nor_does_a_loss_that_is_no_number_for_some_batch(method: str) -> None:
    def loss(output: Tensor, batch: Any) -> Tensor:
        return F.cross_entropy(output, batch[1]) / (len(output) != COUNTS[1])

    all_images = CurvatureOptions(curvature_images=9, moment_images=9)
    with pytest.raises(RunFailed, match=r"loss \w+ batch \d is not finite"):
        pruned(net(), batches(), method=method, loss=loss, curvature=all_images)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64], ids=str)
def test_class_ids_of_any_size_are_class_ids(dtype: torch.dtype) -> None:
    expected = pruned(net(), batches(), fine_tune=1.0).module.state_dict()
    found = pruned(net(), batches(lambda n: (torch.arange(n) % 3).to(dtype)), fine_tune=1.0).module.state_dict()
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_the_same_batches_in_other_clothes_give_the_same_network() -> None:
    whole = {"fine_tune": 1.0, "curvature": CurvatureOptions(curvature_images=9, moment_images=9)}
    expected = pruned(net(), batches(), **whole).module.state_dict()
    others: list[tuple[Any, dict[str, Any]]] = [
        (DataLoader(TensorDataset(*map(torch.cat, zip(*batches(), strict=True))), batch_size=5), {}),
        ([(*batch, "name") for batch in batches()], {"forward": lambda model, batch: model(batch[0])}),
        ([(x.numpy(), y) for x, y in batches()], {"forward": lambda model, batch: model(torch.as_tensor(batch[0]))}),
        ([list(batch) for batch in batches()], {}),
    ]
    for loader, options in others:
        found = pruned(net(), loader, **whole, **options).module.state_dict()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


class Greedy(nn.Module):
    """Normalises its input in place."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.sub_(1.0).mul_(0.5))


@pytest.mark.parametrize("forward", [None, lambda model, batch: model(batch[0])])
def test_batches_stay_as_they_are_whatever_the_network_does_to_its_input(forward: Any) -> None:
    data = batches()
    found = pruned(Greedy(), data, fine_tune=1.0, forward=forward)
    assert all(x.equal(y) for (x, _), (y, _) in zip(data, batches(), strict=True))
    assert found.spec.macs <= 0.6 * found.spec.dense_macs and not found.left_alone


@pytest.mark.parametrize("method", ["fisher-tucker", "l1", "taylor", "kron-obd"])
def test_a_caller_is_left_as_it_was(method: str) -> None:
    """Weights, modes, gradients, what is trained, hooks, and the gradient mode."""
    model = net()
    model[1].eval()
    model[0].get_parameter("weight").requires_grad_(False)
    model[3].get_parameter("bias").grad = torch.ones(6)
    calls: list[int] = []
    handle = model[2].register_forward_hook(lambda *_: calls.append(1))
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        found = pruned(model, batches(), method=method, fine_tune=1.0)
        assert not torch.is_grad_enabled()
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert [m.training for m in model] == [True, False, True, True, True, True]
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == {"0.weight"}
    assert {n for n, p in model.named_parameters() if p.grad is not None} == {"3.bias"}
    assert [len(m._forward_hooks) for m in model] == [0, 0, 1, 0, 0, 0] and handle.id in model[2]._forward_hooks
    assert [m.training for m in found.module.children()] == [True, False, True, True, True, True]
    assert all(p.grad is None for p in found.module.parameters())


def test_gradients_are_made_where_a_caller_has_none() -> None:
    expected = pruned(net(), batches(), fine_tune=1.0).module.state_dict()
    with torch.inference_mode():
        found = pruned(net_outside(), batches_outside(), fine_tune=1.0).module.state_dict()
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def net_outside() -> nn.Module:
    with torch.inference_mode(False):
        return net()


def batches_outside() -> list[Any]:
    with torch.inference_mode(False):
        return batches()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_finite_weights_whose_output_is_not_never_come_back(dtype: torch.dtype) -> None:
    def goes_astray(module: nn.Module) -> None:
        for parameter in module.parameters():
            parameter.data.fill_(torch.finfo(dtype).max / 2)

    food = [(inputs.to(dtype), labels) for inputs, labels in batches()]
    with pytest.raises(RunFailed, match="output is not finite; fine-tune at a lower lr"):
        pruned(net().to(dtype), food, fine_tune=goes_astray)
