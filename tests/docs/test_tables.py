"""What the pages say of options, methods and files is what the code has."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from hybridprune.config.check import options_of
from hybridprune.config.methods import METHOD_NAMES
from tests.docs.pages import PAGES, ROOT, rendered, tables

COINED = (
    "always on, arm, avoidable cost, backbone, blend, block, bring-back, budget, compression, core, damping, "
    "decision, dense network, deployed, direction, eager, effective sparsity, estimator, executed, execution "
    "rate, expected flops, fixed subset, flops, floor, gather, hardening, importance, left alone, macs, "
    "masked, nat, parent, pressure, price, rank, rate-distortion, recalibration, refit, replayed, rotation, "
    "route, run folder, stage, static, threshold, unit, validation split"
)
"""Words that mean something of their own on these pages."""

PARTS = ["Use", "Formula", "Options", "Measured", "Source"]
"""Of the page of a method."""


@pytest.mark.parametrize("page", PAGES)
def test_every_table_of_a_page_can_be_made(page: str) -> None:
    assert "<!-- table" not in rendered(page)


@pytest.mark.parametrize("stage", ["sp", "prune", "rl"])
def test_the_command_reference_has_every_option(stage: str) -> None:
    hook = tables()
    text = hook.render(f"<!-- table: stage {stage} -->")
    assert f"<!-- table: stage {stage} -->" in PAGES["commands.md"]
    for concern in dataclasses.fields(hook.STAGES[stage]):
        for o in options_of(concern.name, getattr(hook.STAGES[stage], concern.name)):
            assert all(f"`--{flag}`" in text for flag in o.flags) and f"`{o.key}`" in text, o.name


def test_the_command_reference_has_every_command() -> None:
    hook = tables()
    described = set(re.findall(r"table: help (\w+)", PAGES["commands.md"]))
    assert described == hook.COMMANDS.keys() - set(hook.STAGE_COMMANDS)
    assert {f"## {name}" for name in hook.COMMANDS} <= set(PAGES["commands.md"].splitlines())
    for name in described:
        assert "usage: " in hook.render(f"<!-- table: help {name} -->"), name


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(KeyError):
        tables().render("<!-- table: options no_such_option -->")


def test_every_method_has_a_page() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text()
    for name in METHOD_NAMES:
        page = PAGES[f"methods/{name}.md"]
        assert page.startswith(f"# {name}\n") and f'method="{name}"' in page, name
        parts = [part for part in re.findall(r"^## (.*)$", page, flags=re.MULTILINE) if part in PARTS]
        assert parts == PARTS, name
        assert f"methods/{name}.md" in navigation and f"methods/{name}.md" in PAGES["methods.md"], name
    assert len([page for page in PAGES if page.startswith("methods/")]) == len(METHOD_NAMES)


def test_the_glossary_has_the_words_of_tables_and_options() -> None:
    glossary = re.findall(r"^\*\*([^*]+)\.\*\* \S", PAGES["concepts.md"], flags=re.MULTILINE)
    defined = {word.strip().lower() for entry in glossary for word in entry.split(",")}
    assert len(defined) > 60
    texts = " ".join(rendered(page) for page in PAGES if page != "concepts.md").lower()
    for word in COINED.split(", "):
        assert word in defined and word in texts, word


def test_every_page_is_in_the_navigation() -> None:
    navigation = re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), flags=re.MULTILINE)
    assert sorted(navigation) == sorted(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_the_files_that_a_page_names_exist(page: str) -> None:
    for name in re.findall(r"`((?:\w+/)+(?:\w+\.\w+)?)(?: \w+)?`", PAGES[page]):
        if name.split("/")[0] in {"benchmarks", "examples", "hybridprune", "notebooks", "tests"}:
            assert (ROOT / name).exists(), name
        elif name.endswith(".py"):
            assert (ROOT / "hybridprune" / name).exists(), name


def test_the_rooms_that_the_architecture_names_exist() -> None:
    package = ROOT / "hybridprune"
    named = set(re.findall(r"\b(?:[a-z_]+/)+[a-z_0-9]+\b", PAGES["architecture.md"]))
    inside = [name for name in named if (package / name.split("/")[0]).is_dir()]
    assert len(inside) > 20
    assert [n for n in inside if not (package / n).exists() and not (package / f"{n}.py").exists()] == []


def test_the_layers_are_those_of_the_contract() -> None:
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    table = PAGES["architecture.md"].split("## The one-way rule")[1].split("## ")[0]
    packages = {
        name for layer in contract["layers"] for name in layer.split(" | ") if (ROOT / "hybridprune" / name).is_dir()
    }
    assert packages <= set(re.findall(r"`(\w+)`", table))


def test_links_of_tables_lead_from_where_the_page_lies() -> None:
    table = "<!-- table: options cut_weights -->"
    assert "](options.md#sources)" in tables().render(table, "imitation.md")
    assert "](../options.md#sources)" in tables().render(table, "methods/bcnet.md")
    assert "](#train)" in tables().render("<!-- table: commands -->", "methods/bcnet.md")


@pytest.mark.full
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")
    # Not --quiet: what is not told is not counted.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "commands.html").is_file()


@pytest.mark.parametrize("page", PAGES)
def test_whoever_reads_the_source_of_a_page_is_told_that_tables_are_missing(page: str) -> None:
    missing = re.search(r"^(<!-- table: |::: )", PAGES[page], flags=re.MULTILINE) is not None
    assert ("<!-- in a clone -->\nIn a clone" in PAGES[page]) == missing
    assert "In a clone" not in rendered(page) or not missing
