"""Where nothing compiles, training goes on and one line says why."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from hybridprune.engine.compiler import compiled

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
