"""What a newcomer meets before the code agrees with it."""

from __future__ import annotations

import re
from pathlib import Path

from hybridprune.version import __version__

ROOT = Path(__file__).parent.parent


def test_the_citation_is_of_this_version() -> None:
    assert re.findall(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), flags=re.MULTILINE) == [__version__]


def test_workflow_and_guide_name_targets_that_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    workflow = (ROOT / ".github/workflows/checks.yml").read_text()
    (matrix,) = re.findall(r"target: \[(.*)\]", workflow)
    guide = (ROOT / "CONTRIBUTING.md").read_text()
    named = {*matrix.split(", "), *re.findall(r"\bmake ([a-z]+)", guide)}
    assert {"lint", "test", "docs"} <= named <= targets


def test_paths_in_the_guide_exist() -> None:
    guide = (ROOT / "CONTRIBUTING.md").read_text()
    named = re.findall(r"`((?:hybridprune|tests|benchmarks|docs)/[\w/.]*)`", guide)
    assert len(named) >= 5
    for path in named:
        assert (ROOT / path).exists(), path
    for path in re.findall(r"`((?:pruning|models)/[\w/.]*)`", guide):
        assert (ROOT / "hybridprune" / path).exists(), path
    for link in re.findall(r"\]\(([^)h][^)#]*)\)", guide):
        assert (ROOT / link).exists(), link
