"""FrozenBatchNorm2d is cut, restored and folded as the BatchNorm is that has the same numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.ops.misc import FrozenBatchNorm2d

import hybridprune
from hybridprune.config import CurvatureOptions
from hybridprune.errors import UserError

IMAGES = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LOADER = [(IMAGES, torch.arange(8) % 3)]
FEW = CurvatureOptions(curvature_images=8)


def net(frozen: bool) -> nn.Sequential:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(6).eval()
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        assert tensor is not None
        nn.init.uniform_(tensor, 0.2, 2.0)
    constant = FrozenBatchNorm2d(6, norm.eps)
    constant.load_state_dict(norm.state_dict())
    made = [nn.Conv2d(3, 6, 3), constant if frozen else norm, nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten()]
    return nn.Sequential(*made, nn.Linear(64, 3)).eval()


@pytest.fixture(autouse=True)
def recalibrated_norms_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a BatchNorm may learn after the cut, a frozen one may not."""
    monkeypatch.setattr("hybridprune.api.prune.recalibrate_by", lambda *_, **__: None)


@pytest.mark.parametrize("method", ["bn-scale", "taylor", "saliency", "lookahead"])
def test_it_loses_the_channels_that_a_batchnorm_would(method: str, tmp_path: Path) -> None:
    found, expected = (
        hybridprune.prune(net(frozen), LOADER, target_flops=0.6, method=method, curvature=FEW)
        for frozen in (True, False)
    )
    norm = found.module.get_submodule("1")
    assert isinstance(norm, FrozenBatchNorm2d) and 1 <= len(norm.get_buffer("running_var")) < 6
    torch.testing.assert_close(found.module(IMAGES), expected.module(IMAGES))
    assert found.spec.edits == expected.spec.edits and found.spec.macs == expected.spec.macs
    hybridprune.save(found, tmp_path)
    assert torch.equal(hybridprune.restore(tmp_path, into=net(True))(IMAGES), found.module(IMAGES))


def test_it_is_folded() -> None:
    whole = net(True)
    deployed = hybridprune.deploy(whole, IMAGES, progress=False)
    assert deployed.report.folded == {"1": "0"} and deployed.report.kept == ()
    torch.testing.assert_close(deployed.module(IMAGES), whole(IMAGES))


def test_a_training_towards_the_cut_refuses_it() -> None:
    with pytest.raises(UserError, match=r"method slimming: .* 1 is a FrozenBatchNorm2d; use a method that does not"):
        hybridprune.prune(net(True), LOADER, target_flops=0.6, method="slimming")
