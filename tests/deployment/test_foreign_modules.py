"""Modules of a user's own: whatever code connects their layers, deploying changes nothing but rounding."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torchvision import models

from hybridprune.api.prune import prune
from hybridprune.config import CutOptions
from hybridprune.deployment import Harden, deploy
from hybridprune.deployment.assembly import relative_difference
from hybridprune.errors import RunFailed, UserError
from hybridprune.models.factored import factored
from tests.deployment.networks import SPECS, assert_close, built, preferring
from tests.networks_and_images import random_images, randomise


class Aliased(nn.Module):
    """Runs its layers by other names than those under which they are found first."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        self.conv, self.norm = self.features
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x)).mean(dim=(2, 3)))


class Hidden(nn.Module):
    """Runs a BatchNorm that it also keeps where no module is looked for."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 5)
        self.layers = [self.norm]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers[0](self.conv(x)).mean(dim=(2, 3)))


class Standardised(nn.Conv2d):
    """Computes with another weight than the one it holds (weight standardisation, Qiao et al. 2019)."""

    def forward(self, input: Tensor) -> Tensor:
        w = self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)
        return F.conv2d(input, w / w.std(dim=(1, 2, 3), keepdim=True), self.bias)


class Greedy(nn.Module):
    """Changes its input in place."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = behind(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.sub_(0.1))


class Tokens(nn.Module):
    """BatchNorm1d over 16 tokens of as many features: its channels are not those of the linear layer before it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm, self.head = nn.Linear(27, 16), nn.BatchNorm1d(16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.linear(x.reshape(len(x), 16, 27)))).mean(dim=1)


def behind(*layers: nn.Module) -> nn.Module:
    """The layers, 8 channels wide, and a head."""
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


def linear_layers() -> nn.Module:
    """BatchNorm1d behind one linear layer and before another."""
    norm = nn.BatchNorm1d
    return nn.Sequential(nn.Flatten(), nn.Linear(432, 8), norm(8), nn.ReLU(), norm(8), nn.Linear(8, 5))


def hooked(layer: nn.Module) -> nn.Module:
    """With code that changes what the layer gives."""
    layer.register_forward_hook(lambda module, args, output: output * 1.5 + 1)
    return layer


MODULES: OrderedDict[str, tuple[Callable[[], nn.Module], int]] = OrderedDict(
    {
        "aliases": (Aliased, 0),
        "weight standardisation": (lambda: behind(Standardised(3, 8, 3), nn.BatchNorm2d(8)), 1),
        "spectral norm": (
            lambda: behind(parametrizations.spectral_norm(nn.Conv2d(3, 8, 3)), nn.BatchNorm2d(8)),
            1,
        ),
        "tokens": (Tokens, 1),
        "linear layers": (linear_layers, 0),
        "changes its input": (Greedy, 0),
        "in-place ReLU between": (lambda: behind(nn.Conv2d(3, 8, 3), nn.ReLU(True), nn.BatchNorm2d(8)), 1),
        "valid 3x3 behind": (lambda: behind(nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3, 2)), 0),
        "grouped 1x1 behind": (
            lambda: behind(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1, groups=2)),
            1,
        ),
        "a hook between": (lambda: behind(hooked(nn.Conv2d(3, 8, 3)), nn.BatchNorm2d(8)), 1),
        "a hook behind": (lambda: behind(nn.Conv2d(3, 8, 3), hooked(nn.BatchNorm2d(8))), 1),
        "a factored layer's hook": (lambda: behind(hooked(factored(nn.Conv2d(3, 8, 3), 2, 4)), nn.BatchNorm2d(8)), 1),
        "double precision": (lambda: behind(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).double(), 0),
    }
)
"""Modules of ``[B, 3, 12, 12]`` images, and how many BatchNorms must stay."""


@pytest.mark.parametrize(("make", "kept"), MODULES.values(), ids=MODULES.keys())
@torch.no_grad()
def test_the_logits_stay(make: Callable[[], nn.Module], kept: int) -> None:
    torch.manual_seed(0)
    model = make()
    randomise(model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            for value in (module.running_var, module.weight, module.bias):
                assert value is not None
                value.uniform_(0.5, 1.5)
    images = random_images(3, 12).to(next(model.parameters()).dtype)
    given = images.clone()
    expected = model(images.clone())
    module, report = deploy(model, images, time=preferring("dense"))
    assert torch.equal(images, given)
    assert_close(module(images.clone()), expected)
    assert torch.equal(model(images), expected)
    assert len(report.kept) == kept, report.kept


@pytest.mark.parametrize(
    "name", ["resnet18", "shufflenet_v2_x0_5", pytest.param("densenet121", marks=pytest.mark.full)]
)
@torch.no_grad()
def test_networks_of_torchvision(name: str) -> None:
    torch.manual_seed(0)
    model = models.get_model(name, weights=None, num_classes=5)
    randomise(model)
    images = random_images(2, 40)
    module, report = deploy(model, images, time=preferring("dense"))
    assert_close(module(images), model(images))
    # Pre-activation blocks keep those that read a concatenation; all others go.
    assert (len(report.kept) == 0) == (name != "densenet121") and report.folded


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("resnet", "fisher-tucker"),
        ("vgg", "fisher-tucker"),
        pytest.param("pyramidnet, bottleneck, shakedrop", "l1", marks=pytest.mark.full),
        ("resnet", "l1"),
    ],
)
@torch.no_grad()
def test_pruned_modules(name: str, method: str) -> None:
    images, labels = random_images(8, 12), torch.arange(8) % 5
    with torch.enable_grad():
        cut = CutOptions(use_out_dependencies=True)
        model = prune(built(SPECS[name]).backbone, [(images, labels)], target_flops=0.6, method=method, cut=cut).module
    for form in ("dense", "input-sided", "output-sided", "two-sided"):
        module, report = deploy(model, images, time=preferring(form))
        assert_close(module(images), model(images))
        assert bool(report.forms) == (method == "fisher-tucker")


def test_what_cannot_be_seen_is_found_out() -> None:
    torch.manual_seed(0)
    model = Hidden()
    randomise(model)
    with pytest.raises(RunFailed, match="changes the logits"):
        deploy(model, random_images(2, 12), time=preferring("dense"))


class Named(nn.Module):
    """Gives a dictionary."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": x}


def test_other_than_one_tensor_is_refused() -> None:
    with pytest.raises(UserError, match="Named: gives a dict; only modules that give one tensor"):
        deploy(Named(), random_images(2, 12))
    with pytest.raises(UserError, match="example_input: is a list; only modules that take one tensor"):
        deploy(Named(), [random_images(2, 12)])  # type: ignore[arg-type]


@torch.no_grad()
def test_half_precision_may_round_as_it_does() -> None:
    torch.manual_seed(0)
    model = behind(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).bfloat16()
    randomise(model)
    images = random_images(3, 12).bfloat16()
    module, report = deploy(model, images, time=preferring("dense"))
    assert not report.kept and relative_difference(model(images).float(), module(images).float()) <= 2**-6


def test_hardening_needs_gates_and_images_to_judge_it_by() -> None:
    for net in (built(SPECS["resnet"]), built(SPECS["vgg"])):
        with pytest.raises(UserError, match="harden"):
            deploy(net, random_images(2, 12), harden=Harden(), time=preferring("gather"))
