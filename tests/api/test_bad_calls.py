"""Calls that say too little, too much or something else: each ends in one line that names the argument."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import hybridprune
from hybridprune.config import CurvatureOptions, CutOptions, SparsityOptions
from hybridprune.errors import UserError
from tests.networks_and_images import random_net

QUICK = CurvatureOptions(curvature_images=8, moment_images=8)
UNFITTED = CutOptions(refit_images=0)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(24, 3)
    )
    made(images())  # statistics of images that vary by 1
    return made.eval()


class Scaling(nn.Module):
    """Takes pixels as they are in files."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x.float() - 128) / 74)


def images(count: int = 6) -> Tensor:
    return torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def pixels() -> Tensor:
    return torch.randint(0, 256, (6, 3, 6, 6), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


def batches(x: Tensor | None = None, y: Tensor | None = None) -> list[tuple[Tensor, Tensor]]:
    return [(images() if x is None else x, torch.arange(6) % 3 if y is None else y)]


class Once(IterableDataset[Any]):
    """Images of a stream that has one end."""

    def __init__(self) -> None:
        self.stream = zip(images(), torch.arange(6) % 3, strict=True)

    def __iter__(self) -> Iterator[Any]:
        return self.stream


class Again(IterableDataset[Any]):
    """Images of a stream that starts anew."""

    def __iter__(self) -> Iterator[Any]:
        yield from zip(images(), torch.arange(6) % 3, strict=True)


def call(data: Any = None, model: nn.Module | None = None, **options: Any) -> hybridprune.Pruned:
    common: dict[str, Any] = {"curvature": QUICK, "cut": UNFITTED}
    return hybridprune.prune(model or net(), batches() if data is None else data, **{**common, **options})


def half(data: Any = None, model: nn.Module | None = None, **options: Any) -> hybridprune.Pruned:
    return call(data, model, target_flops=0.6, **options)


BAD: dict[str, tuple[Callable[[], object], str]] = {
    "method": (lambda: half(method="fisher_tucker"), r'method "fisher_tucker": .*, did you mean fisher-tucker\?'),
    "method, in options": (lambda: CutOptions(method="taylr"), r'CutOptions\.method "taylr": .* did you mean taylor\?'),
    "allocation": (lambda: CutOptions(allocation="foo"), r'CutOptions\.allocation "foo": must be one of auto, '),
    "ratio": (lambda: CutOptions(prune_ratio=5), r"CutOptions\.prune_ratio 5: must be at most 1"),
    "curvature": (lambda: CurvatureOptions(ma=1.0), r"CurvatureOptions\.ma 1\.0: must be at most 0\.999"),
    "sparsity": (lambda: SparsityOptions(sparse_epochs=-1), r"SparsityOptions\.sparse_epochs -1: must be at least 0"),
    "no budget": (call, r"target_flops: it is not said how much goes; give target_flops=0\.5 "),
    "two methods": (
        lambda: half(method="l1", cut=CutOptions(method="bn-scale")),
        r"method l1: cut\.method is bn-scale; give one",
    ),
    "two methods, one as by default": (
        lambda: half(method="l1", cut=CutOptions(method="fisher-tucker")),
        r"method l1: cut\.method is fisher-tucker; give one",
    ),
    "two methods, one in a changed copy": (
        lambda: half(method="l1", cut=replace(CutOptions(method="fisher-tucker"), refit_images=0)),
        r"method l1: cut\.method is fisher-tucker; give one",
    ),
    "two budgets": (
        lambda: call(target_flops=0.5, cut=CutOptions(target_flops=0.9)),
        r"target_flops 0\.5: cut\.target_flops is 0\.9",
    ),
    "a ratio and a budget": (
        lambda: half(cut=CutOptions(prune_ratio=0.5)),
        r"cut\.prune_ratio 0\.5: is not read .* target_flops 0\.6;",
    ),
    "a library layer": (
        lambda: half(method="l1", cut=CutOptions(allocation="peel")),
        r"cut\.allocation peel: .* those of method l1 are",
    ),
    "a budget by another name": (
        lambda: call(method="nuspm", target_params=0.5),
        "method nuspm: trains masks .*; give target_flops, and no",
    ),
    "generator": (
        lambda: half(batch for batch in batches()),
        "the loader is a generator, which can be gone through once",
    ),
    "iterator": (lambda: half(iter(batches())), "the loader is a list_iterator, which can be gone through once"),
    "stream": (
        lambda: half(DataLoader(Once(), batch_size=3)),
        r"the loader's data set \(Once\) can be gone through once",
    ),
    "empty list": (lambda: half([]), "the loader gives no batches; give one that is not empty"),
    "empty loader": (
        lambda: half(DataLoader(TensorDataset(images(1), torch.zeros(1)), batch_size=2, drop_last=True)),
        "the loader gives no batches",
    ),
    "uint8": (
        lambda: half(batches(pixels())),
        r"the network fails on the first batch .*; its inputs are uint8: images",
    ),
    "0 to 255": (lambda: half(batches(pixels().float())), "the inputs are on another scale .* in front of 1 they vary"),
    "too small": (lambda: half(batches(images() / 255)), "the inputs are on another scale .* vary 0.00"),
    "labels from 1": (lambda: half(batches(y=torch.arange(6) % 3 + 1)), ".*class id 3 with 3 outputs; give ids from 0"),
    "labels below 0": (lambda: half(batches(y=torch.arange(6) % 3 - 1)), ".*class id -1 with 3 outputs"),
    "labels of numbers": (lambda: half(batches(y=torch.rand(6))), ".*takes class ids, and the targets are float32"),
    "percent": (
        lambda: call(target_flops=50, method="l1"),
        r"target_flops 50\.0: 50 is taken as 50 FLOPs, for 50 % give target_flops 0\.5; below what cut\.",
    ),
    "layers left alone": (
        lambda: call(target_flops=0.01, method="l1"),
        r"target_flops 0\.01: .* the floor is .*; left alone: 5 \(.*outputs\); give .*, or a method that cuts ",
    ),
    "a layer that is not there": (
        lambda: half(cut=CutOptions(exclude=("5", "33"))),
        r"cut\.exclude 33: matches no convolution or linear layer of the network, did you mean 3\?",
    ),
    "numpy": (
        lambda: half([(images().numpy(), torch.arange(6) % 3)]),
        r"the first batch: a batch is a tuple of 2 \(ndarray, Tensor\).*; convert both with torch\.from_numpy",
    ),
    "a loss of torch": (
        lambda: half(loss=nn.CrossEntropyLoss()),
        r"the loss of the first batch fails .*\(output, batch\): give loss='cross_entropy', or give loss=lambda output",
    ),
    "a function of torch": (lambda: half(loss=nn.functional.mse_loss), ".*: give loss='mse', or give loss=lambda"),  # type: ignore[arg-type]
    "a loss of targets": (
        lambda: half(loss=lambda output, targets: nn.functional.cross_entropy(output, targets)),
        r".* is a function of \(output, batch\): give loss=lambda output, batch: f\(output, batch\[1\]\)",
    ),
    "count": (lambda: hybridprune.count(net(), 16), "net: is a Sequential, not a gated network .*count_module"),  # type: ignore[arg-type]
    "size": (lambda: hybridprune.count(random_net(8), 0), "input_size 0: must be a whole number of pixels above 0"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_call_ends_in_one_line(name: str) -> None:
    bad, message = BAD[name]
    with pytest.raises(UserError, match=f"^{message}") as refused:
        bad()
    assert "\n" not in str(refused.value) and "--" not in str(refused.value)


GOOD: dict[str, tuple[Callable[[], hybridprune.Pruned], Callable[[], hybridprune.Pruned]]] = {
    "everything in the options": (
        lambda: call(method="bn-scale", target_flops=0.6),
        lambda: call(cut=CutOptions(refit_images=0, method="bn-scale", target_flops=0.6)),
    ),
    "the same twice": (
        lambda: call(method="l1", target_flops=0.6),
        lambda: call(method="l1", target_flops=0.6, cut=CutOptions(refit_images=0, method="l1", target_flops=0.6)),
    ),
    "None says nothing": (
        lambda: call(target_flops=0.6),
        lambda: call(target_flops=0.6, cut=CutOptions(refit_images=0, target_flops=None)),
    ),
    "a stream that starts anew": (
        lambda: half([(x, y) for x, y in DataLoader(Again(), batch_size=3)], method="l1"),
        lambda: half(DataLoader(Again(), batch_size=3), method="l1"),
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_what_is_said_once_counts(name: str) -> None:
    one, other = (make() for make in GOOD[name])
    assert one.spec == other.spec
    for key, value in one.module.state_dict().items():
        assert torch.equal(value, other.module.state_dict()[key]), key


def test_a_ratio_alone_is_enough() -> None:
    assert call(method="l1", cut=CutOptions(prune_ratio=0.25)).spec.macs < call(target_flops=1.0).spec.dense_macs


def test_a_network_that_scales_its_images_takes_pixels() -> None:
    assert half(batches(pixels()), Scaling().eval()).spec.macs > 0
