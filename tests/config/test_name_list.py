"""Names in one word of a command line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridprune.config.name_list import joined_names, split_names

NAMES = st.text(st.characters(exclude_categories=("Cs",)), min_size=1).filter(lambda name: name == name.strip())


@given(st.lists(NAMES, min_size=1))
def test_names_are_read_as_they_were_joined(names: list[str]) -> None:
    assert split_names(joined_names(names)) == names


def test_names_are_typed_without_quotes_unless_they_hold_a_comma() -> None:
    assert joined_names(["r/a", "r/b c"]) == "r/a,r/b c"
    assert joined_names(["r/x,prune.target_flops=0.5", "b"]) == '"r/x,prune.target_flops=0.5",b'
    assert split_names('a, "b,c" ,, d') == ["a", "b,c", "d"] and split_names(" , ") == []


def test_what_is_no_line_is_told() -> None:
    with pytest.raises(ValueError, match="new-line"):
        split_names("a\nb")
