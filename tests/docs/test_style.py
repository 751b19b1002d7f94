"""Pages are read by people in a hurry: short sentences, and first what one can do with the page."""

from __future__ import annotations

import re
import statistics

import pytest

from tests.docs.pages import PAGES

LONGEST, MEAN = 35, 15
OLDER = {"architecture.md"}
"""Pages from before the rule on the mean, of reports on measurements mostly."""


def sentences(markdown: str) -> list[str]:
    """The sentences of the prose: no code, tables, headings or directives. An item of a list is a paragraph."""
    text = re.sub(r"```.*?```|<!--.*?-->", "", markdown, flags=re.DOTALL)
    text = re.sub(r"^(\||#|:::).*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"^ *(-|\d\.) ", "\n\n", text, flags=re.MULTILINE)
    text = re.sub(r"\]\([^)]*\)|[`*\[]", "", text)
    paragraphs = [" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text)]
    found = [s for paragraph in paragraphs for s in re.split(r"(?<=[.:;!?])\s+(?=[A-Z])", paragraph)]
    return [s for s in found if re.search(r"[a-z]", s)]


@pytest.mark.parametrize("page", PAGES)
def test_sentences_are_short(page: str) -> None:
    lengths = {s: len(s.split()) for s in sentences(PAGES[page])}
    assert [s for s, words in lengths.items() if words > LONGEST] == []
    assert page in OLDER or statistics.mean(lengths.values()) <= MEAN


@pytest.mark.parametrize("page", PAGES)
def test_a_page_begins_with_what_the_reader_can_do(page: str) -> None:
    first = " ".join(sentences(PAGES[page])[:3])
    assert re.search(r"\b(you|use|your)\b", first, flags=re.IGNORECASE), first


def test_a_long_sentence_is_seen() -> None:
    assert [len(s.split()) for s in sentences("# A\n\nOne two. Three\nfour.\n\n| no |\n\n- five `six`\n- seven")] == [
        2,
        2,
        2,
        1,
    ]
