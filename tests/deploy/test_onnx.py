"""ONNX Runtime and torch.export programs compute what the deployed network does, and really skip."""

from __future__ import annotations

import torch

from hybridprune.data import normalise
from hybridprune.data.digits import load_digits
from hybridprune.deploy import deploy
from tests.deploy.cases import SPECS, built, preferring

GATED = ("resnet, factored", "pyramidnet, bottleneck, shakedrop", "resnet, ff1")


def digits(count: int, size: int = 12) -> torch.Tensor:
    """Real images, normalised."""
    data = load_digits(resize=size)
    return normalise(data.test.images[:count], data.mean, data.std, torch.contiguous_format)


def deployed(name: str) -> torch.nn.Module:
    return deploy(built(SPECS[name]), digits(2), time=preferring("two-sided", "gather 0")).module
