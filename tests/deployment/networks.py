"""Networks of every kind, pruned in every way, to be deployed, and stopwatches that are told what is fast."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hybridprune.measure.latency import Arms, Latency, Stopwatch
from hybridprune.models.edits import FactorEdit
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.models.spec import NetworkSpec
from tests.networks_and_images import randomised

FACTORED = (
    FactorEdit("backbone.conv", None, 3),
    FactorEdit("backbone.blocks.0.conv1", 2, 3),
    FactorEdit("backbone.blocks.1.conv1", 2, 3),
    FactorEdit("backbone.blocks.1.conv2", 3, None),
    FactorEdit("backbone.blocks.2.conv1", None, 4),
    FactorEdit("backbone.blocks.2.projection.0", 2, 4),
    FactorEdit("backbone.blocks.3.conv2", 4, 4),
    FactorEdit("backbone.classifier", 7, 4),
)
IN_SEQUENCE = (
    FactorEdit("backbone.blocks.0.residual.conv1", 2, 3),
    FactorEdit("backbone.blocks.2.residual.conv1", 3, None),
    FactorEdit("backbone.blocks.2.residual.conv2", 4, 5),
    FactorEdit("backbone.blocks.3.residual.conv2", None, 4),
    FactorEdit("backbone.classifier", None, 4),
)
SPECS = {
    "resnet": NetworkSpec("resnet", 14, 4, 5),
    "resnet, factored": NetworkSpec("resnet", 14, 4, 5, FACTORED),
    "resnet, ff1": NetworkSpec("resnet", 14, 4, 5, FACTORED[1:3], gate="ff1"),
    "resnet, ff2": NetworkSpec("resnet", 14, 4, 5, gate="ff2"),
    "preresnet": NetworkSpec("preresnet", 14, 4, 5),
    "preresnet, bottleneck, factored": NetworkSpec("preresnet", 20, 3, 5, IN_SEQUENCE, bottleneck=True),
    "pyramidnet, factored": NetworkSpec("pyramidnet", 14, 4, 5, IN_SEQUENCE, pyramid_alpha=7),
    "pyramidnet, bottleneck, shakedrop": NetworkSpec(
        "pyramidnet", 20, 3, 5, pyramid_alpha=7, bottleneck=True, shakedrop=0.5
    ),
    "vgg": NetworkSpec("vgg", 11, 2, 5),
    "vgg, factored": NetworkSpec(
        "vgg", 11, 4, 5, (FactorEdit("backbone.features.conv1_1", None, 2), FactorEdit("backbone.classifier", 3, None))
    ),
}


def built(spec: NetworkSpec, seed: int = 0) -> GatedNetwork:
    """A network with random weights of full size, so that every rotation matters."""
    torch.manual_seed(seed)
    net = randomised(spec.build())
    return net


def told(prefer: Callable[[list[str]], str]) -> Stopwatch:
    """A stopwatch by which the arm that ``prefer`` picks is the fastest; every arm is really called once."""

    def time(arms: Arms) -> dict[str, Latency]:
        for run in arms.values():
            run()
        best = prefer(list(arms))
        return {name: Latency(ms, ms, ms, 1) for name in arms for ms in (1.0 if name == best else 2.0,)}

    return time


def preferring(*names: str) -> Stopwatch:
    """The first of these arms that there is, is the fastest; without one, the first arm."""
    return told(lambda arms: next((name for name in names if name in arms), arms[0]))


def assert_close(found: Tensor, expected: Tensor) -> None:
    """1e-4, relative to the largest of each image's logits."""
    difference = (found - expected).abs().amax(1) / expected.abs().amax(1)
    assert found.shape == expected.shape and float(difference.max()) <= 1e-4, difference
