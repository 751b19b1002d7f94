"""Which of many work, by trying them together."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from hybridprune.pruning.partition import partition


@given(st.integers(0, 40), st.sets(st.integers(0, 39), max_size=5))
def test_each_that_fails_is_found(count: int, bad: set[int]) -> None:
    calls = 0

    def check(items: Sequence[int]) -> str | None:
        nonlocal calls
        calls += 1
        found = [item for item in items if item in bad]
        return f"{found[-1]} is bad" if found else None

    good, failed = partition(range(count), check)
    assert good == [i for i in range(count) if i not in bad]
    assert sorted(failed) == [(i, f"{i} is bad") for i in sorted(bad) if i < count]
    assert calls <= 1 + 3 * 7 * len(bad)


def test_what_does_not_go_together_is_parted() -> None:
    good, failed = partition([1, 2, 3, 4], lambda items: "together" if {1, 4} <= set(items) else None)
    assert good == [1, 2] and failed == [(3, "together"), (4, "together")]
