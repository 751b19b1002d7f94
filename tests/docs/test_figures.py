"""The tables of the pages are what was measured."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.docs.pages import PAGES, ROOT, tables

LINES = map(json.loads, (ROOT / "benchmarks/results/static_arms.jsonl").read_text().splitlines())
STATIC: dict[tuple[str, float], dict[str, Any]] = {
    (line["arm"], line["budget"]): line for line in LINES if "params" in line
}
SIDE_BY_SIDE: list[dict[str, Any]] = json.loads((ROOT / "docs/methods.json").read_text())


def test_static_methods_side_by_side() -> None:
    section = PAGES["results.md"].split("## Static methods side by side")[1].split("\n## ")[0]
    rows = re.findall(r"^\| ([a-z][\w ,-]*?) \|((?: [\d.]+ \|){4})$", section, flags=re.MULTILINE)
    assert {name for name, _ in rows} == {arm for arm, _ in STATIC}
    for name, cells in rows:
        figures = [100 * STATIC[name, budget][column] for budget in (0.5, 0.25) for column in ("after_cut", "tuned")]
        assert [f"{figure:.2f}" for figure in figures] == cells.replace("|", " ").split(), name


def test_the_arms_of_the_static_page() -> None:
    arms = PAGES["static.md"].split("## The arms")[1].split("\n## ")[0]
    rows = re.findall(r"^\| ([a-z][\w ,-]*?) \| ([\d.]+) \| ([\d,]+) \| ([\d.]+) \|", arms, re.MULTILINE)
    found = {(name, 0.5 if float(share) > 40 else 0.25): (params, cut) for name, share, params, cut in rows}
    assert found == {key: (f"{line['params']:,}", f"{100 * line['after_cut']:.2f}") for key, line in STATIC.items()}


@pytest.mark.parametrize("network", sorted({row["network"] for row in SIDE_BY_SIDE}))
def test_all_methods_side_by_side(network: str) -> None:
    text = PAGES["results_methods.md"].split(f"{network}, 6 + 3")[1].split("\n## ")[0]
    rows = re.findall(r"^\| ([a-z].*?) \| ([\d.]+) \| ([\d,]+) \| \d+ \| \d+ \| ([\d.]+) \|", text, re.MULTILINE)
    measured = [row for row in SIDE_BY_SIDE if row["network"] == network]
    shown = [(r["arm"], f"{100 * r['share']:.2f}", f"{r['params']:,}", f"{100 * r['accuracy']:.2f}") for r in measured]
    assert sorted(rows) == sorted(shown)


def test_a_page_of_a_method_shows_its_figures() -> None:
    (row,) = (row for row in SIDE_BY_SIDE if row["arm"] == "nuspm" and row["network"] == "vgg11-w16")
    assert f"| {100 * row['accuracy']:.2f} |" in tables().render(PAGES["methods/nuspm.md"])
