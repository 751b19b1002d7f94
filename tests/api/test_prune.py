"""Static pruning of modules that nobody has registered."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import DenseNet, EfficientNet, MobileNetV2
from torchvision.models.efficientnet import MBConvConfig

import hybridprune
from hybridprune.config import CurvatureOptions, CutOptions, SparsityOptions
from hybridprune.errors import UserError
from hybridprune.measure.cost import count_module

QUICK = CurvatureOptions(curvature_images=32, moment_images=32)


class Padded(nn.Module):
    """Parameter-free shortcuts, in-place and functional calls, a grouped and a shared layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.wide = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.same = nn.Conv2d(32, 32, 3, padding=1)
        self.grouped = nn.Conv2d(32, 32, 3, padding=1, groups=4)
        self.twice = nn.Conv2d(32, 32, 1)
        self.classifier = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.stem(x))
        y = F.relu(self.wide(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 8, 8)))
        y = self.grouped(self.same(y).relu_()) + y
        y = self.twice(F.relu(self.twice(y)))
        return self.classifier(y.mean((2, 3)))


def batches(count: int = 4, size: int = 32) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    return [
        (torch.rand(8, 3, size, size, generator=draw), torch.randint(10, (8,), generator=draw)) for _ in range(count)
    ]


def settled(make: Callable[[], nn.Module], data: list[tuple[Tensor, Tensor]]) -> nn.Module:
    """An untrained module whose BatchNorms have seen the data, so that something comes through in eval mode."""
    torch.manual_seed(0)
    model = make().train()
    with torch.no_grad():
        for _ in range(8):
            for images, _ in data:
                model(images)
    return model.eval()


def assert_pruned(make: Callable[[], nn.Module], tmp_path: Path) -> hybridprune.Pruned:
    """The budget is hit, the model is untouched, and a fresh instance becomes the pruned module."""
    data = batches()
    model = settled(make, data)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pruned = hybridprune.prune(
        model, data, target_flops=0.7, curvature=QUICK, cut=CutOptions(refit_images=0), fine_tune=0.25, lr=1e-4
    )
    assert all(before[name].equal(value) for name, value in model.state_dict().items())
    assert not pruned.module.training
    macs, params = count_module(pruned.module, data[0][0][:1])
    assert (macs, params) == (pruned.spec.macs, pruned.spec.params)
    assert 0.69 * pruned.spec.dense_macs < macs <= 0.7 * pruned.spec.dense_macs
    hybridprune.save(pruned, tmp_path / "saved")
    fresh = hybridprune.restore(tmp_path / "saved", into=make()).eval()
    with torch.no_grad():
        expected, found = pruned.module(data[0][0]), fresh(data[0][0])
    assert expected.isfinite().all() and found.equal(expected)
    return pruned


def test_a_module_of_ones_own(tmp_path: Path) -> None:
    pruned = assert_pruned(Padded, tmp_path)
    edited = {edit.layer for edit in pruned.spec.edits}
    assert edited and not edited & {"grouped", "twice"}
    assert pruned.left_alone == {
        "grouped": "its channels are in groups",
        "twice": "it runs several times in one pass",
    }
    assert hybridprune.PrunedSpec.read(tmp_path / "saved" / "spec.json") == pruned.spec


# torchvision's own modules, with fewer layers than published.
TORCHVISION: dict[str, Callable[[], nn.Module]] = {
    "densenet": lambda: DenseNet(16, (2, 2, 1, 1), 32, num_classes=10),
    "efficientnet": lambda: EfficientNet(
        [MBConvConfig(1, 3, 1, 32, 16, 1, 1, 1), MBConvConfig(6, 5, 2, 16, 24, 2, 1, 1)], 0.2, num_classes=10
    ),
    "mobilenet": lambda: MobileNetV2(10, inverted_residual_setting=[[1, 16, 1, 1], [6, 24, 2, 2]]),
}


@pytest.mark.full
@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvisions_modules(name: str, tmp_path: Path) -> None:
    assert_pruned(TORCHVISION[name], tmp_path)


def test_the_specification_alone_gives_the_architecture() -> None:
    data = batches()
    pruned = hybridprune.prune(settled(Padded, data), data, target_flops=0.6, curvature=QUICK)
    fresh = hybridprune.restore(pruned.spec, into=Padded())
    assert {n: v.shape for n, v in fresh.state_dict().items()} == {
        n: v.shape for n, v in pruned.module.state_dict().items()
    }


def test_ones_own_training_gets_the_pruned_module() -> None:
    data, seen = batches(), []
    pruned = hybridprune.prune(
        settled(Padded, data), data, target_flops=0.6, curvature=QUICK, fine_tune=lambda module: seen.append(module)
    )
    assert seen == [pruned.module]


def test_nothing_is_lost_at_the_full_budget() -> None:
    data = batches()
    model = settled(Padded, data)
    pruned = hybridprune.prune(model, data, target_flops=1.0, curvature=QUICK, cut=CutOptions(refit_images=0))
    with torch.no_grad():
        torch.testing.assert_close(pruned.module(data[0][0]), model(data[0][0]), rtol=1e-4, atol=1e-5)


def test_channels_of_a_sequential_network(tmp_path: Path) -> None:
    data = batches()

    def make() -> nn.Module:
        convs = [nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(True), nn.Conv2d(16, 32, 3, padding=1)]
        return nn.Sequential(*convs, nn.BatchNorm2d(32), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))

    pruned = hybridprune.prune(settled(make, data), data, target_flops=0.5, method="bn-scale")
    assert pruned.spec.macs <= 0.5 * pruned.spec.dense_macs
    hybridprune.save(pruned, tmp_path)
    fresh = hybridprune.restore(tmp_path, into=make()).eval()
    with torch.no_grad():
        assert fresh(data[0][0]).equal(pruned.module(data[0][0]))


class ByKeyword(Padded):
    """Its ``same`` gets its input by keyword."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.wide(F.relu_(self.stem(x))))
        x = self.grouped(self.same(input=x)) + x
        return self.classifier(self.twice(F.relu(x)).mean((2, 3)))


def test_what_a_user_would_expect_to_be_cut_is_named() -> None:
    data = batches(2)
    with pytest.warns(
        UserWarning, match=r"left alone: same \(it is called by keyword, so its input cannot be seen\)$"
    ) as told:
        pruned = hybridprune.prune(settled(ByKeyword, data), data, target_flops=0.9, curvature=QUICK)
    assert pruned.left_alone.keys() == {"same", "grouped"}
    assert [each.filename for each in told] == [__file__]


def test_specifications_from_before_the_reasons_are_read(tmp_path: Path) -> None:
    record = hybridprune.PrunedSpec((), 1, 2, 3, 4, {"a": "b"}).to_json()
    del record["left_alone"]
    (tmp_path / "spec.json").write_text(json.dumps(record))
    assert hybridprune.PrunedSpec.read(tmp_path / "spec.json") == hybridprune.PrunedSpec((), 1, 2, 3, 4)


def test_users_mistakes(tmp_path: Path) -> None:
    data = batches()
    model = settled(Padded, data)
    with pytest.raises(UserError, match=r"target_flops 0\.001.*the floor is"):
        hybridprune.prune(model, data, target_flops=0.001, curvature=QUICK)
    with pytest.raises(UserError, match=r"^cut\.exclude: "):
        hybridprune.prune(model, data, target_flops=0.5, cut=CutOptions(exclude=("*",)), curvature=QUICK)
    with pytest.raises(UserError, match=r"spec\.json"):
        hybridprune.restore(tmp_path, into=Padded())
    pruned = hybridprune.prune(model, data, target_flops=0.6, curvature=QUICK)
    with pytest.raises(UserError, match="another kind of module"):
        hybridprune.restore(pruned.spec, into=nn.Linear(2, 2))


class Normed(nn.Module):
    """Two convolutions with BatchNorm, the first of which can be narrowed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.bn1 = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.second, self.bn2 = nn.Conv2d(16, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.classifier = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.first(x)))
        return self.classifier(F.relu(self.bn2(self.second(x))).mean((2, 3)))


def test_a_method_may_train_towards_sparsity_first() -> None:
    data = batches(size=8)
    model = settled(Normed, data)
    runs = {}
    for weight in (0.0, 0.1):
        options = SparsityOptions(sparse_epochs=2, sparsity_weight=weight)
        pruned = hybridprune.prune(model, data, target_flops=0.6, method="slimming", lr=0.1, sparsity=options)
        assert pruned.spec.macs <= 0.6 * pruned.spec.dense_macs
        runs[weight] = sum(float(m.weight.detach().abs().mean()) for m in norms(pruned.module))
    assert runs[0.1] < runs[0.0] - 0.05
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), settled(Normed, data).parameters(), strict=True))


def norms(module: nn.Module) -> list[nn.BatchNorm2d]:
    return [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]


def test_the_pruned_network_may_start_from_scratch() -> None:
    data = batches(size=8)
    model = settled(Normed, data)
    cut = CutOptions(cut_weights="scratch")
    kept, fresh = (hybridprune.prune(model, data, target_flops=0.6, method="l1", cut=c).module for c in (None, cut))
    shapes = [[tuple(p.shape) for p in m.parameters()] for m in (kept, fresh)]
    assert shapes[0] == shapes[1]
    assert not torch.equal(*(m.get_parameter("classifier.weight") for m in (kept, fresh)))


def test_effective_sparsity_is_that_of_the_weights_that_are_gone() -> None:
    data = batches(2)
    model = settled(Padded, data)
    pruned = hybridprune.prune(model, data, target_flops=0.6, curvature=QUICK)
    dense = hybridprune.count_weights(model)
    found = hybridprune.effective_sparsity(pruned.module, data[0][0][:1], dense)
    assert 0.1 < found == pytest.approx(1 - hybridprune.count_weights(pruned.module) / dense)
    assert isinstance(model, Padded)
    torch.nn.init.zeros_(model.wide.weight[:4])  # nothing is added to them: the columns that read them are dead, too
    dead = hybridprune.effective_sparsity(model, data[0][0][:1], dense)
    assert dead == pytest.approx((4 * 16 * 9 + 32 * 4 * 9) / dense)
