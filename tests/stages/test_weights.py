"""Starting from dense checkpoints: torchvision's as they are published, for as many classes or for others."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from hybridprune.errors import UserError
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.models.spec import NetworkSpec
from hybridprune.stages.weights import start_from
from tests.networks_and_images import random_images

# name -> its classifier's parameters
NETWORKS = {
    "resnet18": ["fc.weight", "fc.bias"],
    "mobilenet_v3_small": ["classifier.3.weight", "classifier.3.bias"],
    "efficientnet_b0": ["classifier.1.weight", "classifier.1.bias"],
    "squeezenet1_1": ["classifier.1.weight", "classifier.1.bias"],
}


def _published(name: str, path: Path, classes: int = 7, **options: bool) -> nn.Module:
    """An untrained network of torchvision's, its state dict saved as torchvision publishes them."""
    torch.manual_seed(1)
    net = models.get_model(name, weights=None, num_classes=classes, **options)
    with torch.no_grad():
        for tensor in net.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.01 * torch.rand(tensor.shape))
    state = {key: value for key, value in net.state_dict().items() if not key.endswith("num_batches_tracked")}
    torch.save(state, path, _use_new_zipfile_serialization=False)
    return net.eval()


def _started(name: str, classes: int, path: Path) -> GatedNetwork:
    torch.manual_seed(2)
    spec = NetworkSpec(f"torchvision:{name}", 8, 8, classes)
    net = spec.build()
    start_from(net, spec, path)
    return net.eval()


@torch.no_grad()
def _logits(net: nn.Module, images: Tensor) -> Tensor:
    return net(images)


@pytest.mark.parametrize("name", NETWORKS)
def test_all_but_the_classifier(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    published = _published(name, tmp_path / "net.pth")
    net = _started(name, 3, tmp_path / "net.pth")
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "is for 7 classes, not 3" in said[0] and ", ".join(NETWORKS[name]) in said[0]
    torch.manual_seed(2)
    fresh = NetworkSpec(f"torchvision:{name}", 8, 8, 3).build().backbone.state_dict()
    for key in NETWORKS[name]:
        assert torch.equal(net.backbone.state_dict()[key], fresh[key])
        # With this classifier the published network gives our logits: all before it was taken.
        module, _, parameter = key.rpartition(".")
        setattr(published.get_submodule(module), parameter, nn.Parameter(fresh[key]))
    images = random_images(2, 64)
    torch.testing.assert_close(_logits(net.backbone, images), _logits(published, images))


def test_as_many_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    published = _published("mobilenet_v3_small", tmp_path / "net.pth", 3)
    net, images = _started("mobilenet_v3_small", 3, tmp_path / "net.pth"), random_images(2, 64)
    torch.testing.assert_close(_logits(net.backbone, images), _logits(published, images))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("name", "heads"), [("googlenet", "(aux1, aux2)"), ("inception_v3", "(AuxLogits)")])
def test_auxiliary_heads_are_left_out(
    name: str, heads: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published = _published(name, tmp_path / "net.pth", 3, init_weights=False)
    net, images = _started(name, 3, tmp_path / "net.pth"), random_images(2, 96)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and heads in said[0] and f"{name} has none here" in said[0]
    torch.testing.assert_close(_logits(net.backbone, images), _logits(published, images))


def test_auxiliary_heads_of_other_networks_are_refused(tmp_path: Path) -> None:
    _published("mobilenet_v3_small", tmp_path / "net.pth")
    state = torch.load(tmp_path / "net.pth", weights_only=True)
    torch.save({**state, "aux1.fc.weight": torch.ones(2, 2)}, tmp_path / "spoilt.pth")
    with pytest.raises(UserError, match=r"aux1\.fc\.weight is \[2, 2\], the network has nothing"):
        _started("mobilenet_v3_small", 3, tmp_path / "spoilt.pth")


def test_densenets_have_dots_in_published_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    published = _published("densenet121", tmp_path / "net.pth", 3)
    state = torch.load(tmp_path / "net.pth", weights_only=True)
    # The other way round than torchvision's loader: denselayer1.norm1.weight was denselayer1.norm.1.weight.
    dotted = {re.sub(r"(denselayer\d+\.(norm|conv))(\d)", r"\1.\3", key): value for key, value in state.items()}
    assert len(dotted) == len(state) and "features.denseblock1.denselayer1.norm.1.weight" in dotted
    torch.save(dotted, tmp_path / "net.pth")
    net, images = _started("densenet121", 3, tmp_path / "net.pth"), random_images(2, 32)
    torch.testing.assert_close(_logits(net.backbone, images), _logits(published, images))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("broken", ["features.0.0.weight", "classifier.3.weight"])
def test_other_architectures_are_refused(broken: str, tmp_path: Path) -> None:
    _published("mobilenet_v3_small", tmp_path / "net.pth")
    state = torch.load(tmp_path / "net.pth", weights_only=True)
    for spoilt in ({k: v for k, v in state.items() if k != broken}, {**state, broken: state[broken][:, 1:]}):
        torch.save(spoilt, tmp_path / "spoilt.pth")
        with pytest.raises(UserError, match=rf"spoilt\.pth: checkpoint of another architecture: {broken} is"):
            _started("mobilenet_v3_small", 3, tmp_path / "spoilt.pth")


@pytest.mark.parametrize(("network", "depth"), [("resnet", 8), ("preresnet", 8), ("pyramidnet", 8), ("vgg", 11)])
def test_classifiers_of_our_own_networks(network: str, depth: int) -> None:
    assert NetworkSpec(network, depth, 4, 5).classifier() == ["classifier.weight", "classifier.bias"]
