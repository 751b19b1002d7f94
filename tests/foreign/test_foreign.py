"""Networks as people write them: each goes all the way from pruning to deploying, or is refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from hybridprune.errors import UserError
from tests.foreign import convolutions, shared_layers, tasks, tokens, training, wrapped
from tests.foreign.network import goes_all_the_way

FAMILIES = (shared_layers, tokens, training, tasks, convolutions, wrapped)
NETS = {name: net for family in FAMILIES for name, net in family.NETS.items()}
DIRECTIONS = "fisher-tucker"
SLOW = {"compiled", "retinanet"}
"""Compiling takes a second."""


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # reentrant checkpoints, without gradient
@pytest.mark.parametrize("method", [DIRECTIONS, pytest.param("channels", marks=pytest.mark.full)])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.full) if name in SLOW else name for name in NETS]
)
def test_all_the_way(name: str, method: str, tmp_path: Path) -> None:
    net = NETS[name]
    method = net.channels if method == "channels" else method
    if method in net.refused:
        with pytest.raises(UserError, match=net.refused[method]) as refused:
            goes_all_the_way(net, method, tmp_path)
        assert "\n" not in str(refused.value)
    else:
        goes_all_the_way(net, method, tmp_path)
