"""What cannot be timed is refused in one line, before any work."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import hybridprune
from hybridprune.config import CutOptions, LatencyTarget
from hybridprune.errors import UserError
from hybridprune.latency import network_clock
from tests.latency.machine import Machine, machine
from tests.latency.test_prune import batches, cut, plain

__all__ = ["machine"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"method": "slimming"},
            "target_latency: method slimming trains towards its cut, or selects it, by F",
        ),
        (
            {"cut": CutOptions(prune_ratio=0.5)},
            "cut.prune_ratio 0.5: is not read where there is a budget, target_l",
        ),
        ({"latency": 3}, "latency 3: must be an instance of LatencyTarget"),
        (
            {"target_latency": None, "target_flops": 0.5},
            "latency: says how a budget of time is measured; give",
        ),
        ({"target_latency": -1.0}, "target_latency -1.0: must be above 0"),
        (
            {"forward": lambda model, batch: model(batch[0])},
            "target_latency: a network is timed on batches of one tensor of numbers, and this one is called by a forw",
        ),
    ],
)
def test_what_cannot_be_timed_is_refused_before_any_work(
    options: dict[str, Any], message: str, machine: Machine
) -> None:
    with pytest.raises(UserError) as error:
        hybridprune.prune(plain(), batches(), **{"target_latency": 0.5, "latency": LatencyTarget(batch=4), **options})
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "LatencyTarget.batch 0: must be at least 1"),
        ({"threads": 0}, "LatencyTarget.threads 0: must be at least 1"),
        ({"seconds": 0}, "LatencyTarget.seconds 0: must be above 0"),
        ({"engine": "tflite"}, 'LatencyTarget.engine "tflite": must be one of eager, onnxruntime, openvino, compiled'),
    ],
)
def test_a_target_that_may_not_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        LatencyTarget(**options)
    assert str(error.value) == message


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_missing_engine_is_one_line(engine: str, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == engine else there(name))
    with pytest.raises(UserError, match=rf"^latency.engine {engine}: needs {engine}; pip install '.*deploy\]'$"):
        hybridprune.prune(plain(), batches(), target_latency=0.5, latency=LatencyTarget(engine=engine))


def test_several_processes_would_disturb_each_other(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_clock, "count", lambda: 2)
    with pytest.raises(UserError, match=r"^target_latency: several processes disturb each other's clock; start one"):
        cut("plain", 0.5)


def test_a_missing_compiler_is_one_line(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(run: object) -> object:
        raise OSError("no g++")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(UserError, match=r"^latency.engine compiled: torch.compile does not work here: no g\+\+; name"):
        hybridprune.prune(plain(), batches(), target_latency=0.5, latency=LatencyTarget(engine="compiled"))


def test_a_network_that_does_not_compile_is_one_line(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(run: nn.Module) -> Callable[..., object]:
        def own(*args: torch.Tensor) -> object:
            if args[0].ndim == 4:
                raise RuntimeError("backend='inductor' raised:\nKeyError: conv\nmore")
            return run(*args)

        return own

    monkeypatch.setattr(torch, "compile", broken)
    message = r"^target_latency: the network cannot be deployed \(it does not compile: .* KeyError: conv\); give "
    with pytest.raises(UserError, match=message):
        hybridprune.prune(plain(), batches(), target_latency=0.5, latency=LatencyTarget(engine="compiled"))
