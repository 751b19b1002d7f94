"""What is measured of layers of any shape, through `hybridprune.prune`, and what is left alone."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hybridprune
from hybridprune.config import CurvatureOptions, CutOptions
from hybridprune.curvature import collect_factors
from hybridprune.measure.cost import count_module
from hybridprune.pruning import measure
from hybridprune.pruning.left_alone import NO_ROWS, WIDE

QUICK = CurvatureOptions(curvature_images=40, moment_images=40)
T = 3


class Windows(nn.Module):
    """Frames folded into the batch of a convolution, tokens into that of a linear layer, and tokens first."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.tokens, self.first, self.head = nn.Linear(8, 12), nn.Linear(12, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        size = len(x)
        x = self.norm(self.conv(self.stem(x.flatten(0, 1)).relu())).relu()
        x = self.tokens(x.movedim(1, -1).flatten(0, 2)).relu()
        x = x.view(size, -1, 12).transpose(0, 1)
        return self.head(self.first(x).relu().mean(0))


class Objects(nn.Module):
    """A layer that reads as many rows of an image as its content says."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.hidden, self.objects = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.hidden(self.embed(x).relu()).relu()
        counts = 1 + (x[:, 0] > 0).long()
        z = self.objects(y.repeat_interleave(counts, 0)).relu()
        return self.head(z[counts.cumsum(0) - 1])


def loader(*shape: int) -> list[tuple[Tensor, Tensor]]:
    """In class order, with a rest of one."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(46) // 12
    images = torch.randn(46, *shape, generator=draw) + labels.view(-1, *(1,) * len(shape))
    return list(zip(images.split(15), labels.split(15), strict=True))


@pytest.mark.parametrize("refit", [0, 46])
def test_folded_frames_and_tokens_are_cut_to_the_budget(refit: int) -> None:
    torch.manual_seed(0)
    model, data = Windows().eval(), loader(T, 3, 4, 4)
    macs, _ = count_module(model, data[0][0][:1])
    frames = T * 4 * 4
    assert macs == frames * (3 * 8 * 9 + 8 * 8 * 9 + 8 * 12 + 12 * 12) + 12 * 4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pruned = hybridprune.prune(model, data, target_flops=0.6, curvature=QUICK, cut=CutOptions(refit_images=refit))
    assert pruned.left_alone == {}
    found, _ = count_module(pruned.module, data[0][0][:1])
    assert found == pruned.spec.macs and 0.5 * macs < found <= 0.6 * macs
    # Behind the cut, the statistics are those of all images, not of the classes'.
    with torch.no_grad():
        x = pruned.module.get_submodule("conv")(
            pruned.module.get_submodule("stem")(torch.cat([x for x, _ in data]).flatten(0, 1)).relu()
        )
    norm = pruned.module.get_submodule("norm")
    assert isinstance(norm, nn.BatchNorm2d)
    torch.testing.assert_close(norm.running_mean, x.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var, x.var((0, 2, 3)), rtol=1e-4, atol=1e-5)


def test_a_layer_whose_rows_are_not_those_of_images_is_left_alone_and_named() -> None:
    torch.manual_seed(0)
    model, data = Objects().eval(), loader(6)
    with pytest.warns(UserWarning, match=f"left alone: objects \\({NO_ROWS}\\)"):
        pruned = hybridprune.prune(model, data, target_params=0.9, curvature=QUICK)
    assert pruned.left_alone == {"objects": NO_ROWS}
    assert torch.equal(pruned.module.get_parameter("objects.weight"), model.objects.weight)


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(measure, "WIDEST", 11)
    yield


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("method", ["fisher-tucker", "kron-obd"])
def test_a_layer_too_wide_for_an_eigenbasis_is_left_alone_and_named(method: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 12), nn.ReLU(), nn.Linear(12, 4)).eval()
    with pytest.warns(UserWarning, match=WIDE):
        pruned = hybridprune.prune(net, loader(6), target_params=0.9, method=method, curvature=QUICK)
    assert WIDE in pruned.left_alone.values()
    assert count_module(pruned.module, torch.zeros(1, 6))[1] <= 0.9 * pruned.spec.dense_params


@pytest.mark.parametrize(("method", "traced"), [("fisher-tucker", 20), ("kron-obd", 0)])
def test_the_first_moment_images_of_the_factor_pass_are_those_of_the_exact_traces_and_k(
    method: str, traced: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[dict[str, Any]] = []

    def collect(*args: Any, **options: Any) -> Any:
        passes.append(options)
        return collect_factors(*args, **options)

    monkeypatch.setattr(measure, "collect_factors", collect)
    net = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 4)).eval()
    curvature = CurvatureOptions(curvature_images=40, moment_images=20)
    hybridprune.prune(net, loader(6), target_params=0.9, method=method, curvature=curvature)
    (found,) = passes
    assert (found["offset_images"], found["traced_images"]) == (20, traced)
