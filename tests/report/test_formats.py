from __future__ import annotations

import csv
import io
import json
import re
import statistics
from pathlib import Path

import pytest

from hybridprune.errors import UserError
from hybridprune.report import Row, collect, render
from hybridprune.report.formats import FORMATS
from tests.report.run_folders import result, write, write_bench, write_lineage

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
    assert {len(line) for line in (head, rule, *body)} == {16}
    static = dict(zip(head, body[1], strict=True))
    assert static == {
        "Row": "static only", "Method": "fisher-tucker", "Network": "resnet32-w16", "Dataset": "tree",
        "Accuracy %": "69.50 ± 3.77",
        "GFLOPs": "0.05000 ± 0.00000", "GMACs": "0.02500 ± 0.00000", "Dense FLOPs %": "50.00 ± 0.00",
        "Parameters": "200,000 ± 0", "Compression %": "50.00 ± 0.00", "Effective sparsity %": "62.50 ± 0.00",
        "Routed execution rate": "0.700 ± 0.000",
        "Routed accuracy %": "57.50 ± 0.00", "Routed GFLOPs": "0.03750 ± 0.00000",
        "Stored bytes": "1,900,000 ± 0", "Seeds": "0, 1, 2 (n = 3)",
    }  # fmt: skip
    single = dict(zip(head, body[3], strict=True))
    assert single["Row"] == r"without pruning (a\|b & 50%_$x)"
    assert single["Accuracy %"] == "75.00" and single["Seeds"] == "0 (n = 1)"
    assert not any("±" in cell for cell in body[3])


def test_runs_that_are_older_than_a_figure_leave_it_empty(tmp_path: Path) -> None:
    old, new = result("sp", "s0", group="old"), result("prune", "p0", effective_sparsity=0.25)
    del old["effective_sparsity"]
    write(tmp_path / "old", old)
    rows = {"old": collect(tmp_path)}
    write(tmp_path / "new", new)
    rows["both"] = collect(tmp_path)
    for name, expected in {"old": [""], "both": ["", "25.00"]}.items():
        head, _, *body = markdown_table(render(rows[name], "markdown"))
        assert [line[head.index("Effective sparsity %")] for line in body] == expected
        table = latex_table(render(rows[name], "latex"))
        assert [line[head.index("Effective sparsity %")] for line in table[1:]] == expected
        raw = json.loads(render(rows[name], "json"))["rows"]
        assert [row["effective_sparsity"] for row in raw] == [float(text) / 100 if text else None for text in expected]
        records = list(csv.DictReader(io.StringIO(render(rows[name], "csv").split("\n", 1)[1])))
        assert [row["effective_sparsity"] for row in records] == [text and "0.25" for text in expected]


def test_every_format_tells_methods_apart(tmp_path: Path) -> None:
    write(tmp_path / "sp", result("sp", "s0"))
    for method in ("l1", "taylor"):
        write(tmp_path / method, result("prune", method, "s0", group=method, method=method))
    write(tmp_path / "rl", result("rl", "r0", "taylor"))
    rows, expected = collect(tmp_path), ["", "l1", "taylor", "taylor"]
    for read, format in ((markdown_table, "markdown"), (latex_table, "latex")):
        head, *body = read(render(rows, format))
        assert [line[head.index("Method")] for line in body if ":--" not in line] == expected
    assert [row["method"] for row in json.loads(render(rows, "json"))["rows"]] == expected
    records = csv.DictReader(io.StringIO(render(rows, "csv").split("\n", 1)[1]))
    assert [row["method"] for row in records] == expected


def test_small_and_large_flops_keep_four_digits(tmp_path: Path) -> None:
    for index, macs in enumerate((0, 123_456, 1_100_700_000, 12_345_600_000)):
        write(tmp_path / str(index), result("sp", f"s{index}", group=f"g{index}", macs__backbone=macs))
    body = markdown_table(render(collect(tmp_path), "markdown"))[2:]
    assert [line[5] for line in body] == ["24.69", "2.201", "0.0002469", "0"]


def test_a_compression_that_rounds_to_zero_has_no_sign(tmp_path: Path) -> None:
    write(tmp_path / "run", result("sp", "s", params__backbone=400_001))
    assert markdown_table(render(collect(tmp_path), "markdown"))[2][9] == "0.00"


def test_latex_has_one_column_count_and_escapes(rows: list[Row]) -> None:
    text = render(rows, "latex")
    alignment = re.search(r"\\begin\{tabular\}\{([lr]+)\}", text)
    assert alignment is not None
    table = latex_table(text)
    assert {len(line) for line in table} == {len(alignment[1])} == {16}
    assert table[0][4] == r"Accuracy \%"
    assert table[2][4] == r"69.50 $\pm$ 3.77"
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


@pytest.fixture
def timed(tmp_path: Path) -> Path:
    """Three seeds; stage 3 is measured for all, stage 2 for one of them, stage 1 for none."""
    write_lineage(tmp_path, seeds=(0, 1, 2), accuracy=ACCURACY)
    for seed, ms in enumerate((4.0, 5.0, 6.0)):
        write_bench(tmp_path / "a" / f"rl-{seed}", {("rl", "eager"): 8.0, ("deployed", "onnx"): ms})
    write_bench(tmp_path / "b" / "prune-1", {("deployed", "eager"): 123456.0}, dense=246912.0)
    return tmp_path


def test_latencies_are_columns_of_what_was_measured(timed: Path) -> None:
    head, _, dense, static, dynamic = markdown_table(render(collect(timed), "markdown"))
    assert head[15:] == ["Eager ms, batch 1 (speed-up)", "Deployed ms, batch 1 (speed-up)", "Seeds"]
    assert dense[15:17] == ["", ""]
    assert static[15:17] == ["", "123,456 (2.00x, eager, n = 1)"]
    # 10 / 4, 10 / 5 and 10 / 6 have mean 2.056 and sample deviation 0.4194
    assert dynamic[15:17] == ["8.000 ± 0.000 (1.25 ± 0.00x)", "5.000 ± 1.000 (2.06 ± 0.42x, onnx)"]
    note = render(collect(timed), "markdown").splitlines()[-1]
    assert note.startswith("FLOPs = 2 x MACs") and note.endswith("Measured on cpu, 2 threads.")
    assert {len(line) for line in latex_table(render(collect(timed), "latex"))} == {18}


def test_without_measurements_nothing_is_said_of_latency(rows: list[Row]) -> None:
    for format in FORMATS:
        assert "speed-up" not in render(rows, format) and "_ms" not in render(rows, format)


def test_other_threads_and_hardware_are_columns_of_their_own(timed: Path) -> None:
    write_bench(timed / "c" / "sp-0", {("dense deployed", "eager"): 10.0}, threads=1)
    (timed / "a" / "rl-2" / "bench.json").unlink()
    write_bench(timed / "a" / "rl-2", {("deployed", "onnx"): 1.0}, hardware={"name": "EPYC"})
    text = render(collect(timed), "markdown")
    head, _, dense, _, dynamic = markdown_table(text)
    assert head[15:-1] == [
        f"{kind} ms, batch 1 [{place}] (speed-up)"
        for kind, place in (("Deployed", 1), ("Eager", 2), ("Deployed", 2), ("Deployed", 3))
    ]
    assert dense[15:-1] == ["10.00 (1.00x, eager, n = 1)", "", "", ""]
    assert dynamic[17:-1] == ["4.500 ± 0.707 (2.25 ± 0.35x, onnx, n = 2)", "1.000 (10.00x, onnx, n = 1)"]
    assert "not averaged: [1] cpu, 1 thread; [2] cpu, 2 threads; [3] cpu, EPYC, 2 threads." in text
    record = json.loads(render(collect(timed), "json"))["rows"][2]
    assert (record["deployed_onnx_b1_at2_ms"], record["deployed_onnx_b1_at3_ms"]) == (4.5, 1.0)


def test_raw_records_have_every_form_and_the_same_keys(timed: Path) -> None:
    write_bench(timed / "a" / "rl-0", {("deployed", "int8"): 2.0, ("rl", "onnx"): 3.0}, batch=32)
    document = json.loads(render(collect(timed), "json"))
    dense, static, dynamic = document["rows"]
    assert list(dense) == list(static) == list(dynamic) and "cpu, 2 threads" in document["convention"]
    name = "deployed_onnx_b1"
    assert (dynamic[f"{name}_n"], dynamic[f"{name}_ms"], dynamic[f"{name}_ms_std"]) == (3, 5.0, 1.0)
    assert dynamic[f"{name}_speedup"] == pytest.approx((10 / 4 + 10 / 5 + 10 / 6) / 3)
    assert dynamic[f"{name}_speedup_std"] == pytest.approx(statistics.stdev([10 / 4, 10 / 5, 10 / 6]))
    assert (dynamic["deployed_int8_b32_ms"], dynamic["own_onnx_b32_ms"]) == (2.0, 3.0)
    assert dense[f"{name}_ms"] is static[f"{name}_ms"] is None and static["deployed_eager_b1_n"] == 1
    line = next(csv.DictReader(io.StringIO(render(collect(timed), "csv").partition("\n")[2])))
    assert list(line) == list(dense) and line[f"{name}_ms"] == ""


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
