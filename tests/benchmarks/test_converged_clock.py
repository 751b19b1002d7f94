"""benchmarks/converged_clock.py: every network in every engine, beside the uncut one in the same engine."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.converged import DENSE, METHODS
from benchmarks.converged_clock import ENGINES, SHOWN, arms, speeds


def network(channels: int) -> nn.Sequential:
    torch.manual_seed(0)
    convs = [nn.Conv2d(3, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)]
    return nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 4)).eval()


@pytest.mark.full
@torch.inference_mode()
def test_each_engine_computes_what_the_network_does_and_is_compared_with_itself() -> None:
    nets = {DENSE: network(64), "small": network(4)}
    images = torch.randn(4, 3, 24, 24)
    for name, run in arms(nets, images, 1).items():
        engine, _, net = name.partition(": ")
        output = run()
        found = torch.as_tensor(output[0] if isinstance(output, list) else output)
        assert engine in ENGINES
        torch.testing.assert_close(found, nets[net](images), rtol=1e-4, atol=1e-5)
    found = speeds(nets, images, 1, 5)
    for engine in ENGINES:
        assert found[f"{engine}: {DENSE}"] == 1 and found[f"{engine}: small"] > 2


def test_what_is_shown_is_an_arm() -> None:
    assert set(SHOWN) < set(METHODS)
