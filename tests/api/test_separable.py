"""Separable layers through `prune`: the budget, the file, a second cut, and what the expected loss is worth."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hybridprune
from hybridprune.config import CurvatureOptions, CutOptions
from hybridprune.measure.cost import count_module
from hybridprune.models.factored import FactoredConv2d, form

QUICK = CurvatureOptions(curvature_images=64, moment_images=64)
SEPARABLE = CutOptions(separable="narrow", refit_images=64)


class Net(nn.Module):
    """Its second convolution is a sum of twelve components, which no rotation makes much smaller."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.conv = nn.Conv2d(12, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.classifier = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.classifier(F.relu(self.norm(self.conv(x))).mean((2, 3)))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    net = Net()
    near = torch.einsum("or,rk,ri->oik", torch.randn(12, 12), torch.randn(12, 9), torch.randn(12, 12))
    net.conv.weight.data = near.view(12, 12, 3, 3) / near.std() * net.conv.weight.std()
    return net.eval()


def batches(images: int = 64) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(images, 3, 12, 12, generator=draw)
    return list(zip(x.split(16), torch.randint(5, (images,), generator=draw).split(16), strict=True))


def separable_layers(model: nn.Module) -> list[str]:
    return [name for name, m in model.named_modules() if isinstance(m, FactoredConv2d) and form(m).separable]


def test_a_layer_becomes_separable_where_that_loses_less(net: Net, tmp_path: Path) -> None:
    images = batches()[0][0]
    losses = {}
    for separable in ("none", "narrow"):
        cut = CutOptions(separable=separable, refit_images=64)
        pruned = hybridprune.prune(net, batches(), target_flops=0.45, cut=cut, curvature=QUICK)
        macs, params = count_module(pruned.module, images[:1])
        assert (macs, params) == (pruned.spec.macs, pruned.spec.params)
        assert macs <= 0.45 * pruned.spec.dense_macs
        assert ("conv" in separable_layers(pruned.module)) == (separable == "narrow")
        losses[separable] = sum(layer.expected_loss or 0 for layer in pruned.spec.layers or ())
    assert losses["narrow"] < losses["none"]
    assert pruned.spec.layers is not None
    assert {layer.name: layer.after.form for layer in pruned.spec.layers}["conv"] == "separable"
    hybridprune.save(pruned, tmp_path / "half")
    same = hybridprune.restore(tmp_path / "half", into=Net())
    assert torch.equal(same.eval()(images), pruned.module.eval()(images))
    deployed = hybridprune.deploy(pruned.module, images)
    torch.testing.assert_close(deployed.module(images), pruned.module(images), rtol=1e-4, atol=1e-4)


def test_a_separable_layer_is_cut_again(net: Net) -> None:
    first = hybridprune.prune(net, batches(), target_flops=0.6, cut=SEPARABLE, curvature=QUICK)
    assert separable_layers(first.module)
    second = hybridprune.prune(first.module, batches(), target_flops=0.7, cut=SEPARABLE, curvature=QUICK)
    assert not second.left_alone and second.spec.macs <= 0.7 * first.spec.macs
    assert separable_layers(first.module)  # the first one is as it was
    fresh = Net()
    fresh.load_state_dict(net.state_dict())
    assert second.module(batches()[0][0]).isfinite().all()


def test_fine_tuning_at_a_rate_that_suits_the_other_layers_does_not_diverge(net: Net) -> None:
    net.conv.weight.data *= 20  # the norm behind it does not mind, the components do
    for batch, _ in batches():
        net.train()(batch)
    pruned = hybridprune.prune(
        net.eval(), batches(), target_flops=0.45, cut=SEPARABLE, curvature=QUICK, fine_tune=4.0, lr=0.05
    )
    with torch.no_grad():
        loss = sum(float(F.cross_entropy(pruned.module.eval()(x), y)) for x, y in batches()) / 4
        before = sum(float(F.cross_entropy(net.eval()(x), y)) for x, y in batches()) / 4
    assert loss < before + 0.1
