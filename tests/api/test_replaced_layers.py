"""Layers that a user reaches by several ways, and what hangs on them: what the pruned module is like afterwards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hybridprune
from hybridprune.config import CurvatureOptions, CutOptions
from hybridprune.measure.cost import count_module
from hybridprune.models.factored import FactoredLayer

QUICK = CurvatureOptions(curvature_images=16, moment_images=16)
NO_REFIT = CutOptions(refit_images=0)


def batches(count: int = 2) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    return [(torch.rand(8, 3, 8, 8, generator=draw), torch.randint(5, (8,), generator=draw)) for _ in range(count)]


class Plain(nn.Module):
    """Three convolutions with BatchNorms, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.bn1 = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.conv2, self.bn2 = nn.Conv2d(12, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.conv3, self.bn3 = nn.Conv2d(12, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.classifier = nn.Linear(12, 5)

    def steps(self) -> list[tuple[nn.Module, nn.Module]]:
        return [(self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)]

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in self.steps():
            x = F.relu(norm(conv(x)))
        return self.classifier(x.mean((2, 3)))


class Listed(Plain):
    """Its layers run under their second names."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([self.conv1, self.conv2, self.conv3])
        self.norms = nn.ModuleDict({"a": self.bn1, "b": self.bn2, "c": self.bn3})

    def steps(self) -> list[tuple[nn.Module, nn.Module]]:
        return list(zip(self.layers, self.norms.values(), strict=True))


class Wrapped(nn.Module):
    """Another network's children in a sequence of its own, the classifier beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Plain()
        self.features = nn.Sequential(*list(self.backbone.children())[:-1])

    def forward(self, x: Tensor) -> Tensor:
        return self.backbone.classifier(self.features(x).mean((2, 3)))


@pytest.mark.parametrize("method", ["fisher-tucker", "l1"])
@pytest.mark.parametrize("make", [Listed, Wrapped])
def test_a_layer_under_several_names_is_cut_once_and_for_all(
    make: Callable[[], nn.Module], method: str, tmp_path: Path
) -> None:
    data = batches()
    pruned = hybridprune.prune(make().eval(), data, target_flops=0.5, method=method, curvature=QUICK)
    macs, params = count_module(pruned.module, data[0][0][:1])
    assert (macs, params) == (pruned.spec.macs, pruned.spec.params) and 0.4 < macs / pruned.spec.dense_macs <= 0.5
    hybridprune.save(pruned, tmp_path)
    fresh = hybridprune.restore(tmp_path, into=make()).eval()
    assert fresh(data[0][0]).equal(pruned.module(data[0][0]))
    if isinstance(fresh, Listed):
        assert fresh.layers[0] is fresh.conv1 and fresh.norms["b"] is fresh.bn2
    assert sum(isinstance(m, FactoredLayer) for m in fresh.modules()) == len(pruned.spec.edits) * (method != "l1")


@pytest.mark.parametrize("method", ["fisher-tucker", "l1"])
def test_frozen_layers_and_modes_are_as_they_were(method: str) -> None:
    data, model = batches(), Plain().train()
    model.conv2.requires_grad_(False)
    assert model.conv1.bias is not None
    model.conv1.bias.requires_grad_(False)
    for norm in (model.bn1, model.bn3):
        norm.eval()
    modes, seen = {n: m.training for n, m in model.named_modules()}, []
    frozen = {name.rpartition(".")[0] for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"conv1", "conv2"}
    pruned = hybridprune.prune(
        model, data, target_flops=0.5, method=method, curvature=QUICK, cut=NO_REFIT, fine_tune=seen.append
    )
    net = pruned.module
    assert {n: m.training for n, m in net.named_modules() if n in modes} == modes and modes["bn1"] is False
    assert all(m.training for m in net.get_submodule("conv2").modules())
    trained = {n: p.requires_grad for n, p in net.named_parameters()}
    expected = {n: not n.startswith("conv2.") and not (n.startswith("conv1.") and "bias" in n) for n in trained}
    assert trained == expected and trained["conv3.core.weight" if method == "fisher-tucker" else "conv3.weight"]


def test_fine_tuning_leaves_what_is_frozen_alone() -> None:
    data, model = batches(), Plain().train()
    model.conv2.requires_grad_(False)
    model.bn1.eval()
    pruned = hybridprune.prune(model, data, target_flops=0.5, curvature=QUICK, cut=NO_REFIT)
    tuned = hybridprune.prune(model, data, target_flops=0.5, curvature=QUICK, cut=NO_REFIT, fine_tune=1.0, lr=0.1)
    before, after = pruned.module.state_dict(), tuned.module.state_dict()
    changed = {name for name in before if not before[name].equal(after[name])}
    assert "conv3.core.weight" in changed and "bn2.running_mean" in changed
    assert not any(name.startswith(("conv2.", "bn1.running", "bn1.num")) for name in changed)


def test_what_reads_a_layers_type_and_shape_still_can() -> None:
    class Reads(Plain):
        def forward(self, x: Tensor) -> Tensor:
            x = x.to(self.conv1.weight.dtype).to(self.conv2.weight.device)
            y = super().forward(F.pad(x, (self.conv2.dilation[0] - 1,) * 4))
            return y[:, : self.classifier.out_features] + self.conv2.out_channels + len(self.conv3.weight)

    data = batches()
    pruned = hybridprune.prune(Reads().eval(), data, target_flops=0.4, curvature=QUICK)
    assert len(pruned.spec.edits) >= 2 and not pruned.left_alone
    assert pruned.module(data[0][0]).isfinite().all() and pruned.spec.macs <= 0.4 * pruned.spec.dense_macs
