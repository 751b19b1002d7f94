"""The page on networks of one's own: its snippets run as they stand."""

from __future__ import annotations

import re
import warnings
from typing import Any

import pytest

from hybridprune.api.pruned import Pruned
from hybridprune.curvature.likelihood import NAMED
from tests import ROOT

PAGE = (ROOT / "docs/your_own_network.md").read_text()


def test_the_table_names_all_losses() -> None:
    assert re.findall(r'^\| `"(\w+)"`', PAGE, flags=re.MULTILINE) == list(NAMED)


@pytest.mark.full
def test_the_snippets_run_one_after_the_other() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(blocks) == 5
    names: dict[str, Any] = {}
    for number, block in enumerate(blocks):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of layers that are left alone
            exec(compile(block, f"snippet {number}", "exec"), names)
        if number:
            pruned = names.pop("pruned")
            assert isinstance(pruned, Pruned)
            assert 0.4 * pruned.spec.dense_macs < pruned.spec.macs <= 0.7 * pruned.spec.dense_macs
