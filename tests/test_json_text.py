"""JSON files as people save them, and numbers that JSON does not have."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridprune.config import SpConfig, resolve
from hybridprune.errors import UserError
from hybridprune.grid.grid import read_grid
from hybridprune.json_text import json_text, numbers_at, read_json, short, value_at


def config_of(path: Path) -> SpConfig:
    return resolve(SpConfig(), ["--config_path", str(path)], prog="main_sp.py", description="").config


@pytest.mark.parametrize("mark", ["utf-8", "utf-8-sig"])
def test_a_byte_order_mark_does_no_harm(mark: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"exp_name": "é", "lr": 0.25}', encoding=mark)
    assert read_json(path) == {"exp_name": "é", "lr": 0.25}
    assert config_of(path).optim.lr == 0.25
    path.write_text('{"sp": {"lr": 0.25}}', encoding=mark)
    (run,) = read_grid(path)
    assert run.flags == (("lr", 0.25),)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"lr": 0.25, "exp_name": "é"}'.encode("utf-16"), "not in UTF-8: save it in that encoding"),
        ('{"exp_name": "é"}'.encode("latin-1"), "not in UTF-8"),
        (b'{"lr": 1, "bs": 2, "lr": 3}', "the key 'lr' is there twice: remove one"),
        (b'{"a":' * 100_000 + b"}" * 100_000, "nested too deeply"),
        (b"", "Expecting value"),
    ],
)
def test_what_cannot_be_read_is_told_in_one_line(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    for read in (config_of, read_grid):
        with pytest.raises(UserError, match=f"{path}: not valid JSON .*{reason}") as caught:
            read(path)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def without_infinities(value: object) -> object:
    if isinstance(value, dict):
        return {key: without_infinities(each) for key, each in value.items()}
    if isinstance(value, list):
        return [without_infinities(each) for each in value]
    return None if isinstance(value, float) and (math.isnan(value) or math.isinf(value)) else value


@settings(max_examples=50)
@given(VALUES, st.sampled_from([None, 2]))
def test_numbers_that_are_not_finite_become_null(value: object, indent: int | None) -> None:
    def constant(text: str) -> None:
        raise AssertionError(f"{text} is no JSON")

    assert json.loads(json_text(value, indent), parse_constant=constant) == without_infinities(value)


def test_values_of_any_length_are_shown_short() -> None:
    assert short("word") == "'word'"
    assert len(short("word " * 1000)) <= 60 and len(short("x" * 1000)) <= 60


@pytest.mark.parametrize("value", [10**400, -(10**400), 2**63, math.inf, math.nan])
@pytest.mark.parametrize("kind", [int, float])
def test_numbers_that_no_tensor_holds_are_refused(value: float, kind: type) -> None:
    if value == 2**63 and kind is float:
        assert value_at({"it": value}, "it", kind) == value
    else:
        with pytest.raises(ValueError, match=r"^it is "):
            value_at({"it": value}, "it", kind)


def test_each_number_of_a_list_has_to_be_in_the_range() -> None:
    assert numbers_at({"them": [1, 2.5]}, "them", 1, 2.5) == [1, 2.5]
    for wrong in ([1, 2.6], [0, 1], [1, True], [1, "1"], [1, 10**400]):
        with pytest.raises(ValueError, match=r"^them\[[01]\] is "):
            numbers_at({"them": wrong}, "them", 1, 2.5)
