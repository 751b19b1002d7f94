"""Tables of texts."""

from __future__ import annotations

import pytest

from hybridprune.tables import Table, markdown_head, markdown_row

TABLE = Table(("Layer", "MACs"), "lr", [("conv1", "1,024"), ("a|<b>", "7")])


def test_markdown() -> None:
    lines = TABLE.markdown().split("\n")
    assert lines == ["| Layer | MACs |", "| :-- | --: |", "| conv1 | 1,024 |", r"| a\|<b> | 7 |"]
    assert [*markdown_head(TABLE.head, TABLE.align), *map(markdown_row, TABLE.body)] == lines


def test_plain_text_is_aligned() -> None:
    assert TABLE.plain().split("\n") == ["Layer   MACs", "-----  -----", "conv1  1,024", "a|<b>      7"]


def test_html_is_escaped_and_aligned() -> None:
    assert TABLE.html() == (
        '<table><thead><tr><th style="text-align: left">Layer</th><th style="text-align: right">MACs</th></tr></thead>'
        '<tbody><tr><td style="text-align: left">conv1</td><td style="text-align: right">1,024</td></tr>'
        '<tr><td style="text-align: left">a|&lt;b&gt;</td><td style="text-align: right">7</td></tr></tbody></table>'
    )


def test_a_row_has_as_many_texts_as_there_are_columns() -> None:
    with pytest.raises(AssertionError, match="as many texts"):
        Table(("Layer", "MACs"), "lr", [("conv1",)])
