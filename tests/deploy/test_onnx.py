"""ONNX Runtime and torch.export programs compute what the deployed network does, and really skip."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hybridprune.data.digits import load_digits
from hybridprune.data import normalise
from hybridprune.deploy import DeployedNetwork, deploy
from hybridprune.deploy.onnx import compare, onnx_bytes, session
from hybridprune.deploy.program import METADATA, export_program, program_bytes
from tests.deploy.cases import SPECS, assert_close, built, preferring

GATED = ("resnet, factored", "pyramidnet, bottleneck, shakedrop", "resnet, ff1")


def digits(count: int, size: int = 12) -> torch.Tensor:
    """Real images, normalised."""
    data = load_digits(resize=size)
    return normalise(data.test.images[:count], data.mean, data.std, torch.contiguous_format)


def deployed(name: str) -> torch.nn.Module:
    return deploy(built(SPECS[name]), digits(2), time=preferring("two-sided", "gather 0")).module
