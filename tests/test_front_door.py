"""What a newcomer meets before the code agrees with it."""

from __future__ import annotations

import re
import subprocess
import tomllib

from hybridprune.version import __version__
from tests import ROOT


def test_the_citation_is_of_this_version() -> None:
    assert re.findall(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), flags=re.MULTILINE) == [__version__]


def test_the_version_stands_in_one_place_and_has_a_heading() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" in project["project"]["dynamic"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "hybridprune.version.__version__"}
    headings = re.findall(r"^## \[(.*?)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert headings[:2] == ["Unreleased", __version__]
    assert headings[1:] == sorted(headings[1:], key=_numbers, reverse=True)


def test_a_tag_is_v_and_a_version_of_the_changelog() -> None:
    """As the list for releases asks; a copy without its history has no tags."""
    assert re.search(r"git tag -a v\d+\.\d+\.\d+ ", (ROOT / "CONTRIBUTING.md").read_text())
    listed = subprocess.run(["git", "tag", "--list"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    headings = re.findall(r"^## \[(\d.*?)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert set(listed) <= {f"v{version}" for version in headings}


def _numbers(version: str) -> list[int]:
    return [int(number) for number in version.split(".")]


def test_what_a_package_index_shows_is_there() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (ROOT / project["readme"]).is_file() and all((ROOT / name).is_file() for name in project["license-files"])
    assert project["description"] and len(project["keywords"]) >= 5 and project["requires-python"] == ">=3.11"
    assert len(project["classifiers"]) == len(set(project["classifiers"])) >= 8


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
