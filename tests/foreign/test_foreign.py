"""Networks as people write them: each goes all the way from pruning to deploying, or is refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from hybridprune.errors import UserError
from tests.foreign import convolutions, names, tasks, tokens, training, wrapped
from tests.foreign.cases import goes_all_the_way

FAMILIES = (names, tokens, training, tasks, convolutions, wrapped)
NETS = {name: net for family in FAMILIES for name, net in family.NETS.items()}
DIRECTIONS = "fisher-tucker"
PENDING = {
    "layers in a list as well-fisher-tucker",
    "layers in a list as well-channels",
    "children of a backbone-fisher-tucker",
    "children of a backbone-channels",
    "tied convolutions-channels",
    "asks its layers-fisher-tucker",
    "windows-fisher-tucker",
    "windows-channels",
    "tokens in the batch-fisher-tucker",
    "tokens in the batch-channels",
    "temporal shift-fisher-tucker",
    "temporal shift-channels",
    "sequence first-fisher-tucker",
    "sequence first-channels",
    "batch first, fast path-fisher-tucker",
    "mask by keyword-fisher-tucker",
    "mask by keyword-channels",
    "hooks-fisher-tucker",
    "auxiliary head-fisher-tucker",
    "auxiliary head-channels",
    "checkpointing-fisher-tucker",
    "reentrant checkpointing-fisher-tucker",
    "reentrant checkpointing-channels",
    "features without gradient-fisher-tucker",
    "lazy layers-fisher-tucker",
    "lazy layers-channels",
    "dictionaries-fisher-tucker",
    "dictionaries-channels",
    "loss within-fisher-tucker",
    "loss within-channels",
    "three items-fisher-tucker",
    "three items-channels",
    "two inputs-fisher-tucker",
    "two inputs-channels",
    "segmentation-fisher-tucker",
    "segmentation in a dictionary-fisher-tucker",
    "segmentation in a dictionary-channels",
    "tuple of outputs-fisher-tucker",
    "tuple of outputs-channels",
    "several labels-fisher-tucker",
    "several labels-channels",
    "one logit-fisher-tucker",
    "one logit-channels",
    "regression-fisher-tucker",
    "regression-channels",
    "faster r-cnn-fisher-tucker",
    "faster r-cnn-channels",
    "retinanet-fisher-tucker",
    "retinanet-channels",
    "spectral norm-fisher-tucker",
    "spectral norm-channels",
    "weight norm-channels",
    "old weight norm-fisher-tucker",
    "old weight norm-channels",
    "compiled-fisher-tucker",
    "compiled-channels",
    "bfloat16-fisher-tucker",
    "half-fisher-tucker",
    "channels last-fisher-tucker",
}
"""Not mended yet."""


@pytest.mark.parametrize("method", [DIRECTIONS, pytest.param("channels", marks=pytest.mark.full)])
@pytest.mark.parametrize("name", NETS)
def test_all_the_way(name: str, method: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if f"{name}-{method}" in PENDING:
        request.applymarker(pytest.mark.xfail(reason="not mended yet", strict=False))
    net = NETS[name]
    method = net.channels if method == "channels" else method
    if method in net.refused:
        with pytest.raises(UserError, match=net.refused[method]) as refused:
            goes_all_the_way(net, method, tmp_path)
        assert "\n" not in str(refused.value)
    else:
        goes_all_the_way(net, method, tmp_path)
