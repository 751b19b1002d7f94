"""Starting from the checkpoints of public collections of CIFAR networks: the same function under our names."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hybridprune.data import EvalBatches, LabelledImages
from hybridprune.data.decode import decode_files
from hybridprune.data.listing import list_tree
from hybridprune.engine.evaluate import evaluate
from hybridprune.errors import UserError
from hybridprune.models.spec import NetworkSpec
from hybridprune.stages.weights import start_from
from tests.networks_and_images import random_images
from tests.stages.public_networks import CifarResNet, NumberedVgg, trained


def started(stored: object, path: Path, network: str, depth: int, width: int, classes: int = 5) -> nn.Module:
    """The backbone of a network that starts from ``stored``."""
    torch.save(stored, path)
    torch.manual_seed(2)
    spec = NetworkSpec(network, depth, width, classes)
    net = spec.build()
    start_from(net, spec, path)
    return net.backbone.eval()


@torch.no_grad()
def assert_same_function(net: nn.Module, public: nn.Module) -> None:
    images = random_images(3, 16)
    torch.testing.assert_close(net(images), public(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("names", "depth"),
    [({}, 8), ({}, 20), ({"head": "linear"}, 14), ({"shortcut": "shortcut", "head": "linear"}, 14)],
)
def test_resnets_with_torchvisions_names(
    names: Mapping[str, str], depth: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    public = trained(CifarResNet(depth, 4, 5, **names))
    assert_same_function(started(public.state_dict(), tmp_path / "net.pth", "resnet", depth, 4), public)
    assert capsys.readouterr().err == ""


def test_another_number_of_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    public = trained(CifarResNet(8, 4, 7))
    net = started(public.state_dict(), tmp_path / "net.pth", "resnet", 8, 4)
    assert "is for 7 classes, not 5; its classifier" in capsys.readouterr().err
    public.fc = net.get_submodule("classifier")
    assert_same_function(net, public)


@pytest.mark.parametrize("bias", [True, False])
def test_vggs_with_numbered_layers(bias: bool, tmp_path: Path) -> None:
    for classifier in (nn.Linear(32, 5), nn.Sequential(nn.Dropout(), nn.Linear(32, 5))):
        public = trained(NumberedVgg(4, classifier, bias=bias))
        assert_same_function(started(public.state_dict(), tmp_path / "net.pth", "vgg", 11, 4), public)


def test_a_classifier_of_several_layers_is_not_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    public = trained(NumberedVgg(4, nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 5))))
    net = started(public.state_dict(), tmp_path / "net.pth", "vgg", 11, 4)
    (said,) = capsys.readouterr().err.splitlines()
    assert "its classifier (classifier.0, classifier.2) has several layers" in said and "starts anew" in said
    public.classifier = net.get_submodule("classifier")
    assert_same_function(net, public)


def _option_a() -> dict[str, Tensor]:
    return CifarResNet(8, 4, 5, shortcut=None).state_dict()


def _four_stages() -> dict[str, Tensor]:
    state = CifarResNet(8, 4, 5).state_dict()
    return {**state, **{name.replace("layer3", "layer4"): state[name] for name in state if name.startswith("layer3")}}


def _bottlenecks() -> dict[str, Tensor]:
    return {**CifarResNet(8, 4, 5).state_dict(), "layer1.0.conv3.weight": torch.zeros(4, 4, 1, 1)}


@pytest.mark.parametrize(
    ("state", "network", "size", "words"),
    [
        (lambda: CifarResNet(20, 4, 5).state_dict(), "resnet", (14, 4), "depth 20 and width 4, not of depth 14"),
        (lambda: CifarResNet(14, 8, 5).state_dict(), "resnet", (14, 4), "give --depth 14 --width 8"),
        (lambda: NumberedVgg(4, nn.Linear(32, 5)).state_dict(), "vgg", (16, 4), "give --depth 11 --width 4"),
        (lambda: NumberedVgg(4, nn.Linear(32, 5)).state_dict(), "vgg", (11, 8), "give --depth 11 --width 4"),
        (lambda: NumberedVgg(4, nn.Linear(32, 5), norm=False).state_dict(), "vgg", (11, 4), "has no BatchNorm"),
        (_option_a, "resnet", (8, 4), "shortcuts without weights .option A"),
        (_four_stages, "resnet", (8, 4), "has 4 stages of blocks, resnet has 3"),
        (_bottlenecks, "resnet", (8, 4), "has bottleneck blocks"),
        (lambda: NumberedVgg(4, nn.Linear(32, 5)).state_dict(), "resnet", (8, 4), "of another architecture"),
        (lambda: CifarResNet(8, 4, 5).state_dict(), "vgg", (11, 4), "of another architecture"),
        (lambda: NetworkSpec("resnet", 20, 4, 5).build().state_dict(), "resnet", (8, 4), "give --depth 20 --width 4"),
    ],
)
def test_of_another_kind_or_size(state: Any, network: str, size: tuple[int, int], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^(--weights )?{tmp_path / 'net.pth'}: .*{words}") as caught:
        started(state(), tmp_path / "net.pth", network, *size)
    assert "\n" not in str(caught.value)


PUBLISHED = {  # depth -> sha256 of chenyaofo/pytorch-cifar-models' cifar100_resnetN.pth, and its test accuracy
    20: ("0d7818eb35f95925455f13e548a72cfd79faf9174e293faefba0dd56cef1e164", 0.6883),
    32: ("e36a0629e178095b7747a0ae937c1ca19a2a1adf4a74f3a93eb7c18a4a3e9c90", 0.7016),
    44: ("466747de93dfc24d12769917f83c645d6c17182481c3b51e464d4baef352d1c6", 0.7163),
    56: ("f7e590a0e2fe80795aaeb7c5c75f53bd1050a2161c8e53e523ce2835fffd52e2", 0.7263),
}


@pytest.mark.full
@pytest.mark.skipif(
    not {"HYBRIDPRUNE_CIFAR100_PNG", "HYBRIDPRUNE_CIFAR100_WEIGHTS"} <= os.environ.keys(),
    reason="HYBRIDPRUNE_CIFAR100_PNG or HYBRIDPRUNE_CIFAR100_WEIGHTS names no CIFAR-100 PNG tree, or no weights for it",
)
def test_published_cifar100_resnets_keep_their_accuracy() -> None:
    names = {"train": ("train",), "test": ("test",)}
    folders = list_tree(Path(os.environ["HYBRIDPRUNE_CIFAR100_PNG"]), names, "png").folders["test"]
    files = [f"{folder.path}/{name}" for folder in folders for name in folder.files]
    labels = torch.tensor([folder.label for folder in folders for _ in folder.files])
    images = LabelledImages(decode_files(files, resize=32, num_workers=2, title="test"), labels)
    for depth, (digest, accuracy) in PUBLISHED.items():
        path = Path(os.environ["HYBRIDPRUNE_CIFAR100_WEIGHTS"]) / f"cifar100_resnet{depth}.pth"
        assert hashlib.sha256(path.read_bytes()).hexdigest() == digest, f"{path} is another file than the published one"
        spec = NetworkSpec("resnet", depth, 16, 100)
        net = spec.build()
        start_from(net, spec, path)
        every = {20: 1}.get(depth, 10)  # all images once: the others see a tenth, hence a wider bound
        batches = EvalBatches(
            images, torch.arange(0, 10_000, every), batch_size=500, mean=(0.507, 0.4865, 0.4409),
            std=(0.2673, 0.2564, 0.2761), device="cpu", channels_last=True,
        )  # fmt: skip
        found = evaluate(net, batches, "always_on").accuracy
        assert found == pytest.approx(accuracy, abs=0.001 if every == 1 else 0.04)
