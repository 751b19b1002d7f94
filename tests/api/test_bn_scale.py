"""Training and pruning by BatchNorms' scales in memory: what is trained, what goes, and what is said of it."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import hybridprune
from hybridprune.api import bn_scale as scale_pruning
from hybridprune.api import in_memory
from hybridprune.api.bn_scale import prune_finetune, train
from hybridprune.api.in_memory import Images
from hybridprune.config import DataOptions
from hybridprune.data import Dataset, EvalBatches, LabelledImages, load_dataset
from hybridprune.engine.batchnorm import recalibrate
from hybridprune.errors import UserError
from hybridprune.models.resnet import BasicBlock, ResNet
from hybridprune.models.sigmoid_norm import SigmoidBatchNorm2d
from hybridprune.pruning.promise import BrokenPromise

QUICK: dict[str, Any] = {"epochs": 2, "batch_size": 40, "device": "cpu"}


@pytest.fixture(scope="module")
def digits() -> Dataset:
    """120 training and 60 test images of the embedded digits."""
    options: dict[str, Any] = {"data_dir": None, "img_type": "any", "num_workers": 0, "download": False}
    whole = load_dataset(dataset="digits", resize=8, cache_dir=None, **options)
    some = {
        name: LabelledImages(part.pixels(torch.arange(count)), part.labels[:count])
        for name, part, count in (("train", whole.train, 120), ("test", whole.test, 60))
    }
    return dataclasses.replace(whole, **some)


@pytest.fixture(scope="module")
def receded(digits: Dataset) -> tuple[nn.Module, scale_pruning.Logs]:
    """A trained network with bounded norms; not to be changed."""
    return train(digits, "resnet8-w8", "rni", reg_weight=0.1, **QUICK)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(value.equal(other[name]) for name, value in one.items())


def test_the_api_is_exported() -> None:
    assert hybridprune.train is train and hybridprune.prune_finetune is prune_finetune


def test_the_same_seed_trains_the_same_network(digits: Dataset, receded: tuple[nn.Module, Any]) -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    again, logs = train(digits, "resnet8-w8", "rni", reg_weight=0.1, **QUICK)
    assert torch.rand(3).equal(expected)  # the caller's random numbers are his
    assert same(state(again), state(receded[0])) and logs == receded[1]
    other, _ = train(digits, "resnet8-w8", "rni", reg_weight=0.1, seed=1, **QUICK)
    assert not same(state(other), state(again))


def test_a_seed_is_of_the_filters_and_of_the_gammas(digits: Dataset) -> None:
    states = [
        state(train(digits, "resnet8-w2", method, seed=seed, device="cpu", epochs=0)[0])
        for method, seed in (("rni", 0), ("rni", 1), ("ucs", 1))
    ]
    for name in ("conv.weight", "blocks.1.conv2.weight", "bn.gamma", "blocks.2.bn1.gamma"):
        assert not states[0][name].equal(states[1][name]), name
    assert states[1]["conv.weight"].equal(states[2]["conv.weight"])  # methods start alike


def test_every_norm_is_bounded_and_weak_importances_recede(digits: Dataset) -> None:
    nets = [
        train(digits, "resnet8-w8", "rni", reg_weight=weight, b=3, **{**QUICK, "epochs": epochs})[0]
        for weight, epochs in ((20.0, 2), (0.0, 2), (0.0, 0))
    ]
    norms = [m for m in nets[0].modules() if isinstance(m, SigmoidBatchNorm2d)]
    assert all(not m.affine for m in nets[0].modules() if isinstance(m, nn.BatchNorm2d))
    pushed, free, first = (
        torch.cat([m.gamma.detach() for m in net.modules() if isinstance(m, SigmoidBatchNorm2d)]) for net in nets
    )
    assert sum(len(m.gamma) for m in norms) == len(pushed) == 8 + 2 * 8 + 3 * 16 + 3 * 32
    assert abs(float(first.mean())) < 0.25 and abs(float(first.std()) - 1) < 0.2  # gamma ~ N(0, 1)
    receded = free - pushed
    weak, strong = receded[first < -1], receded[first > 0.5]
    assert float(weak.min()) > 0 and float(weak.mean()) > 10 * float(strong.abs().mean())


def test_plain_norms_start_at_a_half(digits: Dataset) -> None:
    net, logs = train(digits, "vgg11-w2", "ucs", **{**QUICK, "epochs": 0})
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms and all(bool((n.weight == 0.5).all()) and bool((n.bias == 0).all()) for n in norms)
    assert len(logs) == 1 and logs[0]["selected_epoch"] == 0


def test_l1_is_slimming_here_and_ucs_is_neither(digits: Dataset) -> None:
    nets = {
        (method, weight): state(train(digits, "resnet8-w2", method, reg_weight=weight, **QUICK)[0])
        for method, weight in (("l1", 0.01), ("slimming", 0.01), ("ucs", 0.01), ("slimming", 0.0))
    }
    assert same(nets["l1", 0.01], nets["slimming", 0.01])
    assert same(nets["ucs", 0.01], nets["slimming", 0.0]) and not same(nets["ucs", 0.01], nets["l1", 0.01])


def test_the_logs(digits: Dataset) -> None:
    _, logs = train(digits, "resnet8-w2", "slimming", lr=0.1, **{**QUICK, "epochs": 4})
    assert [record["epoch"] for record in logs] == [0, 1, 2, 3, 4]
    assert [record["lr"] for record in logs[1:]] == pytest.approx([0.1, 0.1, 0.01, 0.001])
    assert logs[0]["params"] == 1420 and all(0 < record["train_loss"] < 10 for record in logs[1:])
    validation = [record["validation_accuracy"] for record in logs]
    best = max(validation)
    assert logs[-1]["selected_epoch"] == max(epoch for epoch, found in enumerate(validation) if found == best)
    assert 0 <= logs[-1]["test_accuracy"] <= 1 and "test_accuracy" not in logs[-2]


def test_validation_selects_and_the_test_images_are_read_once(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    seen: list[dict[str, Tensor]] = []
    scores = iter([0.1, 0.5, 0.7, 0.7, 0.3, 0.9])  # before, four epochs, test

    def accuracy(net: nn.Module, batches: EvalBatches) -> float:
        read.append(batches.num_images)
        seen.append(state(net))
        return next(scores)

    monkeypatch.setattr(scale_pruning, "_accuracy", accuracy)
    net, logs = train(digits, "resnet8-w2", "ucs", **{**QUICK, "epochs": 4})
    validation = read[0]
    assert read == [validation] * 5 + [60] and validation < 60
    assert logs[-1]["selected_epoch"] == 3 and logs[-1]["test_accuracy"] == 0.9
    assert same(state(net), seen[3]) and same(seen[3], seen[5]) and not same(seen[3], seen[4])


def test_the_protocol_is_the_published_one(
    digits: Dataset, receded: tuple[nn.Module, scale_pruning.Logs], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []
    epochs: list[int] = []

    def finetune(model: nn.Module, loader: Any, **options: Any) -> None:
        calls.append(options)
        epochs.append(len(list(loader)))

    monkeypatch.setattr(scale_pruning, "finetune", finetune)
    for run in (
        lambda: train(digits, "vgg11-w2", "ucs", device="cpu"),
        lambda: train(digits, "vgg11-w2", "slimming", device="cpu"),
        lambda: train(digits, "vgg11-w2", "rni", reg_weight=0.5, b=1.5, device="cpu"),
        lambda: train(digits, "vgg11-w2", "rni", device="cpu"),
        lambda: train(digits, "resnet8-w2", "rni", device="cpu"),
        lambda: prune_finetune(receded[0], digits, "rni", device="cpu"),
    ):
        run()
    for options in calls:
        assert (options["epochs"], options["lr"], options["weight_decay"]) == (160, 0.1, 1e-4)
        assert [options["schedule"](share) for share in (0.01, 0.49, 0.51, 0.74, 0.76, 0.99)] == pytest.approx(
            [1, 1, 0.1, 0.1, 0.01, 0.01]
        )
        assert options.get("momentum", 0.9) == 0.9
    assert epochs == [2] * 6  # batches of 64 of 108 images
    drives = [options["drive"] for options in calls]
    assert drives[0] is None and not drives[1].lr_factors and not drives[1].undecayed
    assert len(drives[2].lr_factors) == 8 and len(drives[5].lr_factors) == 9  # every norm: 8 of the VGG, 9 here
    assert all(set(d.lr_factors.values()) == {10.0} and set(d.undecayed) == set(d.lr_factors) for d in drives[2:])
    assert (drives[2].pressure._weight, drives[2].pressure._b, len(drives[2].pressure._gammas)) == (0.5, 1.5, 8)
    assert [(d.pressure._weight, d.pressure._b) for d in drives[3:5]] == [(1e-3, 3.0), (1e-4, 0.0)]
    assert drives[1].pressure._weight == 1e-5
    assert drives[5].pressure._gammas == []  # fine-tuning has no regulariser


def test_statistics_are_those_of_the_cut_network(
    digits: Dataset, receded: tuple[nn.Module, scale_pruning.Logs]
) -> None:
    net, _ = prune_finetune(receded[0], digits, "rni", prune_pc=0.5, **{**QUICK, "epochs": 0})
    again = copy.deepcopy(net)
    recalibrate(again, Images.of(digits, 40, 0, "cpu", "finetune").sample)
    for name, value in again.state_dict().items():
        torch.testing.assert_close(value, net.state_dict()[name], msg=name)
    kept = dict(receded[0].named_buffers())["blocks.2.bn2.norm.running_mean"]
    assert not torch.allclose(kept, net.state_dict()["blocks.2.bn2.running_mean"], rtol=1e-3)


@pytest.mark.parametrize("method", ["rni", "ucs", "slimming"])
def test_what_goes_is_below_the_quantile(
    method: str, digits: Dataset, receded: tuple[nn.Module, scale_pruning.Logs]
) -> None:
    model, before = receded[0], state(receded[0])
    net, logs = prune_finetune(model, digits, method, prune_pc=0.6, **{**QUICK, "epochs": 0})
    assert same(state(model), before)
    scores = {
        f"blocks.{i}.conv1": block.bn1.importance.detach().double().numpy() for i, block in enumerate(_blocks(model))
    }
    everything = np.concatenate(list(scores.values()))
    expected = {}
    for name, layer in scores.items():
        threshold = np.quantile(layer if method == "ucs" else everything, 0.6)
        kept = layer > threshold if (layer > threshold).sum() >= 3 else layer >= np.sort(layer)[-3]
        expected[name] = int(kept.sum())
        filters = model.get_submodule(name).get_parameter("weight")[torch.from_numpy(kept)]
        assert net.get_submodule(name).get_parameter("weight").equal(filters)
    assert logs[0]["channels"] == expected
    assert logs[0]["flops"] < logs[0]["flops_before"] and logs[0]["params"] == sum(p.numel() for p in net.parameters())


def test_what_is_cut_computes_what_the_silenced_network_does(
    digits: Dataset, receded: tuple[nn.Module, scale_pruning.Logs]
) -> None:
    model = copy.deepcopy(receded[0]).double()
    images = Images.of(digits, 40, 0, "cpu", "train")
    images = dataclasses.replace(images, sample=images.validation)
    silent = copy.deepcopy(model)
    thresholds = torch.cat([b.bn1.importance for b in _blocks(silent)]).quantile(0.5)
    for block in _blocks(silent):
        weak = block.bn1.importance <= thresholds
        weak[block.bn1.importance.argsort(descending=True)[:3]] = False
        with torch.no_grad():
            block.bn1.gamma[weak] = -1e4  # importance exactly 0
    scale_pruning.conclude(model)
    pixels = torch.randn(7, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    class Double(type(images)):
        @property
        def example(self) -> Tensor:
            return torch.zeros(1, 3, 8, 8, dtype=torch.float64)

    left = scale_pruning._cut(model, Double(**vars(images)), 0.5, by_layer=False)
    assert sum(left.values()) < 8 + 16 + 32
    torch.testing.assert_close(model(pixels), silent(pixels), rtol=1e-10, atol=1e-10)


def _blocks(net: nn.Module) -> list[Any]:
    return [block for block in net.modules() if isinstance(block, BasicBlock)]


def test_fine_tuning_keeps_norms_bounded_and_gives_plain_ones(
    digits: Dataset, receded: tuple[nn.Module, scale_pruning.Logs], monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = itertools.count()
    monkeypatch.setattr(scale_pruning, "_accuracy", lambda *_: next(scores))  # the last epoch is the best
    cut, _ = prune_finetune(receded[0], digits, "rni", prune_pc=0.5, **{**QUICK, "epochs": 0})
    net, logs = prune_finetune(receded[0], digits, "rni", prune_pc=0.5, **QUICK)
    norms = {n: m for n, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert not any(isinstance(m, SigmoidBatchNorm2d) for m in net.modules()) and not net.training
    assert all(bool((n.bias == 0).all()) and bool(((n.weight > 0) & (n.weight < 1)).all()) for n in norms.values())
    assert [record["epoch"] for record in logs] == [0, 1, 2] and logs[-1]["selected_epoch"] == 2
    assert not any(n.weight.equal(cut.get_submodule(name).get_parameter("weight")) for name, n in norms.items())


def test_a_plain_network_is_fine_tuned_with_its_shifts(digits: Dataset) -> None:
    model, _ = train(digits, "vgg11-w4", "slimming", **QUICK)
    net, logs = prune_finetune(model, digits, "l1", prune_pc=0.3, **{**QUICK, "batch_size": 20})
    assert set(logs[0]["channels"]) == {n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    assert min(logs[0]["channels"].values()) >= 3
    assert any(bool((m.bias != 0).any()) for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    assert logs == prune_finetune(model, digits, "slimming", prune_pc=0.3, **{**QUICK, "batch_size": 20})[1]


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_nothing_or_all_but_three(share: float, digits: Dataset, receded: tuple[nn.Module, scale_pruning.Logs]) -> None:
    _, logs = prune_finetune(receded[0], digits, "rni", prune_pc=share, **{**QUICK, "epochs": 0})
    assert list(logs[0]["channels"].values()) == ([3, 3, 3] if share else [8, 16, 32])


def test_users_mistakes(digits: Dataset, receded: tuple[nn.Module, scale_pruning.Logs]) -> None:
    wrong: list[dict[str, Any]] = [{"epochs": -1}, {"batch_size": 1}, {"lr": 0.0}]
    for options in wrong:
        ((name, value),) = options.items()
        with pytest.raises(UserError, match=f"{name} {value}: "):
            train(digits, "resnet8-w2", "rni", **options)
        with pytest.raises(UserError, match=f"{name} {value}: "):
            prune_finetune(receded[0], digits, "rni", **options)
    with pytest.raises(UserError, match=r"reg_weight -0\.1: "):
        train(digits, "resnet8-w2", "rni", reg_weight=-0.1)
    with pytest.raises(UserError, match="method magnitude: must be one of rni, slimming, ucs"):
        train(digits, "resnet8-w2", "magnitude")
    with pytest.raises(UserError, match="arch lenet: give vgg16"):
        train(digits, "lenet", "rni", device="cpu")
    with pytest.raises(UserError, match=r"^arch resnet9: depth 9: "):
        train(digits, "resnet9", "rni", device="cpu")
    with pytest.raises(UserError, match=r"prune_pc 1\.5"):
        prune_finetune(receded[0], digits, "rni", prune_pc=1.5)
    with pytest.raises(UserError, match="cifar is unknown: did you mean cifar10"):
        train("cifar", "resnet8-w2", "rni")
    with pytest.raises(UserError, match="10 outputs for 3 classes"):
        few = dataclasses.replace(digits, classes=("a", "b", "c"))
        prune_finetune(receded[0], few, "rni", device="cpu")
    with pytest.raises(UserError, match="no BatchNorm scales"):
        plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 10))
        prune_finetune(plain, digits, "rni", device="cpu")


def test_options_of_the_data_count() -> None:
    options = DataOptions(dataset="digits", resize=8, max_train_samples=50, augment=False)
    some = Images.of(options, 25, 0, "cpu", "train")
    seen = torch.cat([batch.images for batch in some.training])
    plain = torch.cat([batch.images for batch in some.sample])
    assert len(plain) == 50 and some.validation.num_images == 143  # of 1,438, by class
    assert {image.numpy().tobytes() for image in seen} == {image.numpy().tobytes() for image in plain}
    augmented = Images.of(dataclasses.replace(options, augment=True), 25, 0, "cpu", "train")
    passes = [torch.cat([batch.images for batch in augmented.training]) for _ in range(2)]
    assert not passes[0].sort(0).values.equal(passes[1].sort(0).values)  # each pass is another epoch


def test_data_by_name_and_by_options(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[DataOptions] = []

    def load(options: DataOptions) -> Dataset:
        asked.append(options)
        raise UserError("seen")

    monkeypatch.setattr(in_memory, "load_images", load)
    for source in ("digits", "cifar100", DataOptions(dataset="tree", data_dir="there", resize=16)):
        with pytest.raises(UserError, match="seen"):
            train(source, "vgg16", "rni")
    assert (asked[0].dataset, asked[0].resize, asked[0].download) == ("digits", 8, False)
    assert (asked[1].dataset, asked[1].data_dir, asked[1].resize, asked[1].download) == ("cifar100", "data", 32, True)
    assert (asked[2].dataset, asked[2].data_dir, asked[2].resize) == ("tree", "there", 16)


def test_what_the_cut_network_costs_is_what_was_planned(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    right = scale_pruning.layer_macs

    def wrong(net: nn.Module, run: Callable[[], object]) -> dict[str, int]:
        return {name: 2 * macs for name, macs in right(net, run).items()}

    monkeypatch.setattr(scale_pruning, "layer_macs", wrong)
    with pytest.raises(BrokenPromise):
        prune_finetune(ResNet(8, 4, 10), digits, "slimming", 0.5, **{**QUICK, "epochs": 0})
