"""Pages are read by people in a hurry: short sentences, and first what one can do with the page."""

from __future__ import annotations

import re
import statistics

import pytest

from tests.docs.pages import PAGES, ROOT, rendered

LONGEST, MEAN = 35, 15
TEXTS = PAGES | {name: (ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")}


def sentences(markdown: str) -> list[str]:
    """The sentences of the prose: no code, tables, headings or directives. An item of a list is a paragraph."""
    text = re.sub(r"```.*?```|<!--.*?-->", "", markdown, flags=re.DOTALL)
    text = re.sub(r"^(\||#|:::).*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"^ *(-|\d\.) ", "\n\n", text, flags=re.MULTILINE)
    text = re.sub(r"\]\([^)]*\)|[`*\[]", "", text)
    paragraphs = [" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text)]
    found = [s for paragraph in paragraphs for s in re.split(r"(?<=[.:;!?])\s+(?=[A-Z])", paragraph)]
    return [s for s in found if re.search(r"[a-z]", s)]


@pytest.mark.parametrize("page", TEXTS)
def test_sentences_are_short(page: str) -> None:
    lengths = {s: len(s.split()) for s in sentences(TEXTS[page])}
    assert [s for s, words in lengths.items() if words > LONGEST] == []
    assert statistics.mean(lengths.values()) <= MEAN


@pytest.mark.parametrize("page", TEXTS)
def test_a_page_begins_with_what_the_reader_can_do(page: str) -> None:
    first = " ".join(sentences(TEXTS[page])[:3])
    assert re.search(r"\b(you|use|your)\b", first, flags=re.IGNORECASE), first


def unsaid(markdown: str) -> list[str]:
    """The heads of tables without a sentence right above them, which says what the table shows."""
    text = re.sub(r"```.*?```", "```", markdown, flags=re.DOTALL)
    blocks = re.split(r"\n\s*\n", text.strip())
    above = ["# ", *blocks[:-1]]
    return [b.splitlines()[0] for a, b in zip(above, blocks, strict=True) if b.startswith("|") and not _says(a)]


def _says(block: str) -> bool:
    return re.match(r"#|\||```|<|!\[|- ", block) is None


@pytest.mark.parametrize("page", TEXTS)
def test_each_table_says_above_what_it_shows(page: str) -> None:
    assert unsaid(rendered(page) if page in PAGES else TEXTS[page]) == []


def test_a_table_that_says_nothing_is_seen() -> None:
    said, other = "It works:\n\n| a |\n| - |\n\n", "| b |\n| - |"
    assert unsaid(said) == []
    for above in ("", "# Title\n\n", said, "So:\n\n```bash\nls\n```\n\n", "<!-- a remark -->\n\n", "- an item\n\n"):
        assert unsaid(above + other) == ["| b |"], above


def test_a_long_sentence_is_seen() -> None:
    assert [len(s.split()) for s in sentences("# A\n\nOne two. Three\nfour.\n\n| no |\n\n- five `six`\n- seven")] == [
        2,
        2,
        2,
        1,
    ]
