"""Where nothing compiles, training goes on and one line says why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from hybridprune.engine.compiler import alone, compiled, obstacle, unlimited

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("no C++ compiler\nmore about it", "no C++ compiler"),
        ("backend='inductor' raised:\nOSError: g++\nmore", "backend='inductor' raised: OSError: g++"),
        ("backend raised:", "backend raised:"),
        ("", "RuntimeError"),
    ],
)
def test_a_broken_compiler_is_named_in_one_line(
    message: str, reason: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(model: Callable[..., object]) -> Callable[..., object]:
        def fail(*args: object) -> None:
            raise RuntimeError(message)

        return fail

    monkeypatch.setattr(torch, "compile", broken)
    net = nn.Linear(2, 2)
    assert compiled(net, CPU) is net
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"warning: --compile is left out, torch.compile does not work here: {reason}"


def test_a_compiler_that_works_is_used(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch, "compile", lambda model: lambda *args: ("compiled", model(*args)))
    net = nn.Linear(2, 2)
    outcome = compiled(net, CPU)(torch.ones(1, 2))
    assert outcome[0] == "compiled" and torch.equal(outcome[1], net(torch.ones(1, 2)))
    assert capsys.readouterr().err == ""


def test_networks_of_one_class_are_all_compiled_however_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch leaves the ninth form of one code as it is. Also those that were compiled before stay so."""
    seen: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., object]:
        seen.append(1)
        return graph.forward

    genuine = torch.compile
    monkeypatch.setattr(torch, "compile", lambda run: genuine(run, backend=backend))
    nets = [nn.Sequential(nn.Linear(3, 2 + i), nn.ReLU()) for i in range(20)]
    runs = [alone(net) for net in nets]
    x = torch.randn(4, 3)
    for _ in range(2):
        for net, run in zip(nets, runs, strict=True):
            torch.testing.assert_close(run(x), net(x))
    assert len(seen) == len(nets)


class Seen(list[list[Any]]):
    """A back end that compiles nothing, and the inputs that it was asked for: sizes that may vary are some."""

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., object]:
        self.append(inputs)
        return graph.forward


def test_a_network_is_compiled_for_its_own_shapes_whatever_was_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch takes sizes that differ from those before for sizes that may vary, by the name of the function."""
    seen, genuine = Seen(), torch.compile
    monkeypatch.setattr(torch, "compile", lambda run: genuine(run, backend=seen))
    for batch, size in ((2, 5), (3, 6), (4, 7)):
        alone(nn.Sequential(nn.Flatten(), nn.ReLU()))(torch.randn(batch, size))
    assert len(seen) == 3 and all(isinstance(each, torch.Tensor) for inputs in seen for each in inputs)


class InTwo(nn.Linear):
    """What follows a number that leaves the graph is compiled by itself."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        hidden = super().forward(input)
        print(end="")
        return hidden + float(hidden.sum().item() > 1e9)


def test_networks_in_several_pieces_are_all_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, genuine = Seen(), torch.compile
    monkeypatch.setattr(torch, "compile", lambda run: genuine(run, backend=seen))
    for width in range(2, 14):
        before = len(seen)
        with unlimited(), torch.no_grad():
            alone(InTwo(3, width))(torch.randn(4, 3))
        assert len(seen) > before, width


def test_what_hinders_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(run: Callable[..., object]) -> Callable[..., object]:
        raise OSError("no g++")

    monkeypatch.setattr(torch, "compile", lambda run: run)
    assert obstacle(CPU) is None
    monkeypatch.setattr(torch, "compile", broken)
    assert obstacle(CPU) == "torch.compile does not work here: no g++"
