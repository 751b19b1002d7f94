"""Hooks for a while: there inside, gone afterwards, whatever happened."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hybridprune.hooks import attached


def test_hooks_are_there_inside_and_gone_afterwards() -> None:
    layer, seen = nn.Linear(2, 2), []
    hooks = [layer.register_forward_hook(lambda *_: seen.append("one")) for _ in range(2)]
    with attached(hooks), pytest.raises(RuntimeError):
        layer(torch.ones(1, 2))
        assert seen == ["one", "one"]
        layer(torch.ones(1, 3))
    layer(torch.ones(1, 2))
    assert seen == ["one", "one"]


def test_hooks_are_gone_after_an_error() -> None:
    layer = nn.Linear(2, 2)
    with pytest.raises(ZeroDivisionError), attached([layer.register_forward_hook(lambda *_: None)]):
        raise ZeroDivisionError
    assert not layer._forward_hooks
