from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest

from hybridprune.errors import UserError
from hybridprune.report import Row, collect, render
from hybridprune.report.formats import FORMATS

from .cases import result, write, write_lineage

ACCURACY = (0.7, 0.73, 0.655)


@pytest.fixture
def rows(tmp_path: Path) -> list[Row]:
    write_lineage(tmp_path, seeds=(0, 1, 2), accuracy=ACCURACY)
    other = {"network__label": "resnet110-w16", "dense__macs": 99_000_000}
    write(tmp_path / "odd", result("sp", "odd", group="odd", exp_name="a|b & 50%_$x", **other))
    return collect(tmp_path)


def markdown_table(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def latex_table(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.endswith(r"\\")]
    return [re.split(r"(?<!\\) & ", line.removesuffix(r" \\")) for line in lines]


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_states_the_convention(rows: list[Row], format: str) -> None:
    assert "FLOPs = 2 x MACs" in render(rows, format)


def test_unknown_format_is_a_user_error(rows: list[Row]) -> None:
    with pytest.raises(UserError, match=r"--format html.*markdown"):
        render(rows, "html")


def test_markdown_cells(rows: list[Row]) -> None:
    head, rule, *body = markdown_table(render(rows, "markdown"))
    assert {len(line) for line in (head, rule, *body)} == {14}
    static = dict(zip(head, body[1], strict=True))
    assert static == {
        "Row": "static only", "Network": "resnet32-w16", "Dataset": "tree", "Accuracy %": "69.50 ± 3.77",
        "GFLOPs": "0.05000 ± 0.00000", "GMACs": "0.02500 ± 0.00000", "Dense FLOPs %": "50.00 ± 0.00",
        "Parameters": "200,000 ± 0", "Compression %": "50.00 ± 0.00",
        "Routed execution rate": "0.700 ± 0.000",
        "Routed accuracy %": "57.50 ± 0.00", "Routed GFLOPs": "0.03750 ± 0.00000",
        "Stored bytes": "1,900,000 ± 0", "Seeds": "0, 1, 2 (n = 3)",
    }  # fmt: skip
    single = dict(zip(head, body[3], strict=True))
    assert single["Row"] == r"without pruning (a\|b & 50%_$x)"
    assert single["Accuracy %"] == "75.00" and single["Seeds"] == "0 (n = 1)"
    assert not any("±" in cell for cell in body[3])


def test_small_and_large_flops_keep_four_digits(tmp_path: Path) -> None:
    for index, macs in enumerate((0, 123_456, 1_100_700_000, 12_345_600_000)):
        write(tmp_path / str(index), result("sp", f"s{index}", group=f"g{index}", macs__backbone=macs))
    body = markdown_table(render(collect(tmp_path), "markdown"))[2:]
    assert [line[4] for line in body] == ["24.69", "2.201", "0.0002469", "0"]


def test_a_compression_that_rounds_to_zero_has_no_sign(tmp_path: Path) -> None:
    write(tmp_path / "run", result("sp", "s", params__backbone=400_001))
    assert markdown_table(render(collect(tmp_path), "markdown"))[2][8] == "0.00"


def test_latex_has_one_column_count_and_escapes(rows: list[Row]) -> None:
    text = render(rows, "latex")
    alignment = re.search(r"\\begin\{tabular\}\{([lr]+)\}", text)
    assert alignment is not None
    table = latex_table(text)
    assert {len(line) for line in table} == {len(alignment[1])} == {14}
    assert table[0][3] == r"Accuracy \%"
    assert table[2][3] == r"69.50 $\pm$ 3.77"
    assert table[4][0] == r"without pruning (a|b \& 50\%\_\$x)"
    assert [text.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 1, 1]
    assert text.count(r"\begin{") == text.count(r"\end{") == 2


@pytest.mark.parametrize("character", list("\\{}~^#&%$_±"))
def test_latex_escapes_every_special_character(tmp_path: Path, character: str) -> None:
    write(tmp_path / "run", result("sp", "s", exp_name=f"a{character}b"))
    cell = latex_table(render(collect(tmp_path), "latex"))[1][0]
    escaped = {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
    }
    assert cell == f"without pruning (a{escaped.get(character, chr(92) + character)}b)"


def test_json_is_raw_and_complete(rows: list[Row]) -> None:
    dense, static, dynamic, odd = json.loads(render(rows, "json"))["rows"]
    assert static["accuracy"] == rows[1].stats["accuracy"].mean
    assert static["accuracy_std"] == rows[1].stats["accuracy"].std
    assert (static["n"], static["seeds"], static["flops"], static["macs"]) == (
        3,
        [0, 1, 2],
        50_000_000,
        25_000_000,
    )
    assert (static["group"], static["parent_group"]) == ("prune-group", "sp-group")
    assert dense["parent_group"] is None and dynamic["parent_group"] == "prune-group"
    assert odd["accuracy_std"] is None and odd["experiment"] == "a|b & 50%_$x"
    assert dynamic["compression"] == pytest.approx(1 - 203 / 400)


def test_csv_says_the_same_as_json(rows: list[Row]) -> None:
    comment, _, table = render(rows, "csv").partition("\n")
    assert comment.startswith("# ")
    parsed = list(csv.DictReader(io.StringIO(table)))
    expected = json.loads(render(rows, "json"))["rows"]
    assert len(parsed) == len(expected) == 4
    for line, record in zip(parsed, expected, strict=True):
        assert list(line) == list(record)
        assert [int(seed) for seed in line["seeds"].split()] == record["seeds"]
        for name, value in record.items():
            if isinstance(value, int | float):
                assert float(line[name]) == value
            elif name != "seeds":
                assert line[name] == (value or "")
