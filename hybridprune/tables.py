# pyright: strict
"""Tables of texts, as Markdown, as aligned plain text and as HTML. Pure.

>>> print(Table(("Layer", "MACs"), "lr", [("conv1", "1,024")]).markdown())
| Layer | MACs |
| :-- | --: |
| conv1 | 1,024 |
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

RULES = {"l": ":--", "r": "--:"}


@dataclass(frozen=True)
class Table:
    """A heading, the side to which each column is aligned, and rows of as many texts."""

    head: Sequence[str]
    align: str
    """``l`` or ``r`` for each column."""
    body: Sequence[Sequence[str]]

    def __post_init__(self) -> None:
        assert set(self.align) <= RULES.keys(), self.align
        assert all(len(cells) == len(self.align) for cells in (self.head, *self.body)), "as many texts as columns"

    def markdown(self) -> str:
        """A GitHub table, without a last newline."""
        return "\n".join([*markdown_head(self.head, self.align), *map(markdown_row, self.body)])

    def plain(self) -> str:
        """Columns of equal width, two spaces apart, for a terminal or a log."""
        rows = [self.head, *self.body]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        head, *body = ("  ".join(map(_padded, cells, widths, self.align)).rstrip() for cells in rows)
        return "\n".join([head, "  ".join("-" * width for width in widths), *body])

    def html(self) -> str:
        """A ``<table>``, escaped, for notebooks."""
        head = _html_row("th", self.head, self.align)
        body = "".join(_html_row("td", cells, self.align) for cells in self.body)
        return f"<table><thead>{head}</thead><tbody>{body}</tbody></table>"


def markdown_head(head: Sequence[str], align: str) -> list[str]:
    """The first two lines of a Markdown table, for tables that are printed a row at a time."""
    return [markdown_row(head), markdown_row([RULES[side] for side in align])]


def markdown_row(cells: Sequence[str]) -> str:
    """One line of a Markdown table; a ``|`` in a cell is escaped."""
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _padded(cell: str, width: int, side: str) -> str:
    return cell.rjust(width) if side == "r" else cell.ljust(width)


def _html_row(tag: str, cells: Sequence[str], align: str) -> str:
    sides = {"l": "left", "r": "right"}
    texts = (
        f'<{tag} style="text-align: {sides[side]}">{html.escape(cell)}</{tag}>'
        for cell, side in zip(cells, align, strict=True)
    )
    return f"<tr>{''.join(texts)}</tr>"
